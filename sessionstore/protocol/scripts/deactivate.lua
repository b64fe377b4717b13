-- Switch one override of a session off.
--
-- KEYS[1..11], ARGV[1..10]  as in lib/write.lua
-- KEYS[12] catalog  [13] catalog:mocks  [14] catalog:local
-- ARGV[11] override id
--
-- Returns   lib/reply.lua, written; or lib/failure.lua with the status unknown_environment, unknown_override,
--           local_override, not_found, corrupt_session
-- Publishes 'set' if the override was on, or 'expiry' if only the expiry moved

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

if not environment_is_known(KEYS[7], ARGV[6]) then
  return failure('unknown_environment', ARGV[6])
end
local id = ARGV[11]
local fault = redis.call('EXISTS', KEYS[12]) == 1 and override_fault(KEYS[13], KEYS[14], id)
if fault then
  return failure(fault, id)
end
local session, corrupt = load_session(KEYS[1], now)
if corrupt then
  return failure('corrupt_session', session_key)
end
if not session then
  return failure('not_found', session_key)
end

local changed = string.find(session.overrides, '"' .. id .. '"', 1, true) ~= nil
if changed then
  local rest = {}
  for _, other in ipairs(cjson.decode(session.overrides)) do
    if other ~= id then
      rest[#rest + 1] = '"' .. other .. '"'
    end
  end
  session.overrides = '[' .. table.concat(rest, ',') .. ']'
end

return commit_session(session, changed, true)
