-- Set the state of one session; create it if it is missing. A PUT that changes nothing takes no revision and publishes
-- nothing, but counts as seen.
--
-- KEYS[1..11], ARGV[1..10]  as in lib/write.lua
-- KEYS[12] catalog  [13] catalog:mocks  [14] catalog:local  [15] catalog:scenarios
-- ARGV[11] If-Match: '', '*' or ',7,9,'  [12] If-None-Match: '' or '*'
-- ARGV[13..] pairs: '+name', value (set) or '-name', '' (clear); name is a property, overrides are a JSON array
--
-- Returns   lib/reply.lua, written; or lib/failure.lua with the status unknown_environment, precondition_failed,
--           unknown_override, local_override, unknown_scenario, corrupt_session, quota_exceeded, uncounted
-- Publishes 'set', or 'expiry' if only the expiry moved

--@include lib/clock
--@include lib/text
--@include lib/environment
--@include lib/session
--@include lib/layout
--@include lib/primary
--@include lib/revision
--@include lib/lease
--@include lib/failure
--@include lib/reply
--@include lib/precondition
--@include lib/catalog
--@include lib/usage
--@include lib/write

local known, has_catalog = environment_and_catalog(KEYS[7], ARGV[6], KEYS[12])
if not known then
  return failure('unknown_environment', ARGV[6])
end
local stored, corrupt = load_session(KEYS[1], now)
if corrupt then
  return failure('corrupt_session', session_key)
end
if not precondition_holds(stored, ARGV[11], ARGV[12]) then
  return failure('precondition_failed', stored and int(stored.rev) or '')
end

local session = stored or new_session(now)
local changed = not stored

for i = 13, #ARGV, 2 do
  local set = string.sub(ARGV[i], 1, 1) == '+'
  local name = string.sub(ARGV[i], 2)
  local value = ARGV[i + 1]
  if name == 'overrides' then
    if has_catalog then
      for _, id in ipairs(cjson.decode(value)) do
        local fault = override_fault(KEYS[13], KEYS[14], id)
        if fault then
          return failure(fault, id)
        end
      end
    end
  elseif name == 'scenario' then
    if set and has_catalog and redis.call('HEXISTS', KEYS[15], value) == 0 then
      return failure('unknown_scenario', value)
    end
    value = set and value or nil
  elseif name == 'label' then
    value = set and value or nil
  else
    value = set and tonumber(value) or 0
  end
  if session[name] ~= value then
    session[name] = value
    changed = true
  end
end

return commit_session(session, changed, stored ~= nil)
