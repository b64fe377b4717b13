-- Clear everything that a PUT can set, and keep the session.
--
-- KEYS[1..11], ARGV[1..10]  as in lib/write.lua
-- ARGV[11] If-Match: '', '*' or ',7,9,'
--
-- Returns   lib/reply.lua, written; or lib/failure.lua with the status unknown_environment, precondition_failed,
--           not_found, corrupt_session
-- Publishes 'set' if something was cleared, or 'expiry' if only the expiry moved

--@include lib/clock
--@include lib/text
--@include lib/environment
--@include lib/periods
--@include lib/id_array
--@include lib/session
--@include lib/layout
--@include lib/primary
--@include lib/revision
--@include lib/lease
--@include lib/failure
--@include lib/reply
--@include lib/precondition
--@include lib/usage
--@include lib/write

if not environment_is_known(KEYS[7], ARGV[6]) then
  return failure('unknown_environment', ARGV[6])
end
local session, corrupt = load_session(KEYS[1], now)
if corrupt then
  return failure('corrupt_session', session_key)
end
if not precondition_holds(session, ARGV[11], '') then
  return failure('precondition_failed', session and int(session.rev) or '')
end
if not session then
  return failure('not_found', session_key)
end

local changed = session.label ~= nil or session.scenario ~= nil or session.overrides ~= '[]'
  or session.globalDelayMs > 0 or session.globalDelayMaxMs > 0 or session.ttlSeconds > 0
session.label = nil
session.scenario = nil
session.overrides = '[]'
session.globalDelayMs = 0
session.globalDelayMaxMs = 0
session.ttlSeconds = 0

return commit_session(session, changed, true)
