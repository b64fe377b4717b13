-- Switch one override of a session on; create the session if it is missing.
--
-- KEYS[1..11], ARGV[1..10]  as in lib/write.lua
-- KEYS[12] catalog  [13] catalog:mocks  [14] catalog:local
-- ARGV[11] override id  [12] how many overrides a session may have
--
-- Returns   lib/reply.lua, written; or lib/failure.lua with the status unknown_environment, unknown_override,
--           local_override, too_many_overrides, corrupt_session, quota_exceeded, uncounted
-- Publishes 'set' if the override was off, or 'expiry' if only the expiry moved

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
--@include lib/catalog
--@include lib/usage
--@include lib/write

local known, has_catalog = environment_and_catalog(KEYS[7], ARGV[6], KEYS[12])
if not known then
  return failure('unknown_environment', ARGV[6])
end
local id = ARGV[11]
local fault = has_catalog and override_fault(KEYS[13], KEYS[14], id)
if fault then
  return failure(fault, id)
end

local stored, corrupt = load_session(KEYS[1], now)
if corrupt then
  return failure('corrupt_session', session_key)
end
local session = stored or new_session(now)
local quoted = '"' .. id .. '"'
local changed = string.find(session.overrides, quoted, 1, true) == nil
if changed then
  if session.overrides == '[]' then
    session.overrides = '[' .. quoted .. ']'
  else
    if #cjson.decode(session.overrides) >= tonumber(ARGV[12]) then
      return failure('too_many_overrides', id)
    end
    session.overrides = string.sub(session.overrides, 1, -2) .. ',' .. quoted .. ']'
  end
end

return commit_session(session, changed, stored ~= nil)
