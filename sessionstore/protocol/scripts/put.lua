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

--@include lib/periods
--@include lib/layout
--@include lib/primary
--@include lib/id_array

-- The usual PUT ends here, in two thirds of the time. It sets a label, a scenario or overrides, clears nothing, and finds
-- nothing out of the ordinary. All else is left to what follows: nothing has been written then.
-- tests/scripts/test_usual_put.py compares the two.
do
  local call, find, format = redis.call, string.find, string.format
  local time = redis.call('TIME')
  local now, ttl = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[2])
  local rev, id, max_ttl, expired, countable_at, epoch, lost_rev, layout, kept_until, counted, replid = unpack(
    call('HMGET', KEYS[3], 'rev', 'id', 'maxTtl', 'expiredLeases', 'countableAt', 'epoch', 'lostRev', 'layout',
      'keptUntil', 'counted', 'replid'))
  local old_rev, expires_at, seen_at, created_at, label, scenario, overrides, modified_at, modified_by, looked_up_at, delay,
    max_delay, expiry_rev, own_ttl = unpack(redis.pcall('HMGET', KEYS[1], 'rev', 'expiresAt', 'lastSeenAt', 'createdAt',
      'label', 'scenario', 'overrides', 'modifiedAt', 'modifiedBy', 'lookedUpAt', 'globalDelayMs', 'globalDelayMaxMs',
      'expiryRev', 'ttlSeconds'))
  local existed, by = old_rev, ARGV[8] ~= '' and ARGV[8]

  -- A head that has lost nothing and is kept for long enough, of an environment without quota, precondition or catalog.
  local usual = rev and id and max_ttl and kept_until and layout == LAYOUT and not counted
    and find(rev .. ',' .. max_ttl .. ',' .. kept_until .. ',' .. (countable_at or '0') .. ',' .. (expired or '0') .. ','
      .. (lost_rev or '0'), '^%d+,%d+,%d+,%d+,%d+,%d+$')
    and math.max(#rev, #max_ttl, #(expired or ''), #(lost_rev or '')) < 16 and kept_until - FOREVER <= 0
    and rev - ARGV[4] >= 0 and max_ttl - ttl >= 0 and now - (countable_at or 0) >= 0
    and kept_until - now >= max_ttl + KEEP_MS - KEEP_STEP_MS
    and ARGV[9] == '' and ARGV[11] == '' and ARGV[12] == ''
    and call('EXISTS', KEYS[7], KEYS[12], existed and KEYS[7] or KEYS[1]) == 0

  -- A session that is new, or whole and as long-lived as the store has it.
  if usual and existed then
    usual = expires_at and seen_at and created_at and not (delay or max_delay or expiry_rev or own_ttl)
      and find(old_rev .. ',' .. expires_at .. ',' .. seen_at .. ',' .. created_at .. ',' .. (modified_at or '0') .. ','
        .. (looked_up_at or '1'), '^%d+,%d+,%d+,[1-9]%d*,%d+,[1-9]%d*$')
      and rev - old_rev >= 0 and expires_at - now > 0 and now + ttl - expires_at >= 0 and now - seen_at >= 0
      and #created_at < 16 and #(modified_at or '') < 16 and #(looked_up_at or '') < 16 and (by or not modified_by)
      and not find((label or '') .. (scenario or '') .. (modified_by or ''), '[\128-\255]')
      and #(label or '') + #(scenario or '') + #(modified_by or '') <= 256
      and (not overrides or overrides ~= '[]' and is_id_array(overrides))
  end

  if usual then
    local next_rev, seen, expires = format('%d', rev + 1), format('%d', now), format('%d', now + ttl)
    local fields = { 'rev', next_rev, 'lastSeenAt', seen, 'expiresAt', expires, 'modifiedAt', seen }
    local last, changed = 8, not existed
    for i = 13, #ARGV, 2 do
      local name, value = ARGV[i], ARGV[i + 1]
      if name == '+label' then
        changed, label = changed or value ~= label, value
      elseif name == '+scenario' then
        changed, scenario = changed or value ~= scenario, value
      elseif name == '+overrides' and value ~= '[]' then
        changed, overrides = changed or value ~= overrides, value
      elseif name == '-label' and not label or name == '-scenario' and not scenario or name == '-ttlSeconds'
          or string.sub(name, 1, 12) == '-globalDelay' or name == '+overrides' and not overrides then
        name = nil
      else
        usual = false
        break
      end
      if name then
        fields[last + 1], fields[last + 2] = string.sub(name, 2), value
        last = last + 2
      end
    end

    -- All views are as they should be: the primary is that of their leases, and none of these, nor a session, has to be
    -- dropped first.
    local live = call('ZCARD', KEYS[4])
    if usual and changed and redis.acl_check_cmd and redis.acl_check_cmd('SPUBLISH', KEYS[8], '')
        and (not epoch or replicates_as(replid))
        and (live == 0 or #call('ZRANGEBYSCORE', KEYS[4], '-inf', seen, 'LIMIT', '0', '1') == 0)
        and (existed or #call('ZRANGEBYSCORE', KEYS[2], '-inf', format('%d', now - max_ttl), 'LIMIT', '0', '1') == 0) then
      if not existed then
        fields[last + 1], fields[last + 2] = 'createdAt', seen
        last = last + 2
      end
      if by then
        fields[last + 1], fields[last + 2] = 'modifiedBy', by
      end
      call('ZADD', KEYS[2], seen, ARGV[7])
      call('HSET', KEYS[3], 'rev', next_rev, 'id', ARGV[1])
      call('HSET', KEYS[1], unpack(fields))
      call('PEXPIREAT', KEYS[1], format('%d', now + ttl + COLLECT_AFTER_MS))
      local state = '{"sessionKey":' .. cjson.encode(ARGV[7]) .. ',"rev":' .. next_rev
        .. ',"label":' .. (label and cjson.encode(label) or 'null')
        .. ',"scenario":' .. (scenario and cjson.encode(scenario) or 'null')
        .. ',"overrides":' .. (overrides or '[]') .. ',"globalDelayMs":0,"globalDelayMaxMs":0'
        .. ',"createdAt":' .. (existed and created_at or seen) .. ',"lastSeenAt":' .. seen .. ',"expiresAt":' .. expires
      epoch = ',"epoch":' .. cjson.encode(epoch or '')
      call('SPUBLISH', KEYS[8], '{"type":"set","rev":' .. next_rev .. ',"id":' .. cjson.encode(ARGV[1])
        .. ',"prev":' .. cjson.encode(id) .. ',"at":' .. seen .. ',"wait":' .. (ARGV[5] == '1' and 'true' or 'false')
        .. (#epoch > 11 and epoch or '') .. ',"session":' .. state .. '}}')
      return '{"status":"ok","now":' .. seen .. ',"rev":' .. next_rev .. ',"targetRev":' .. next_rev .. ',"live":' .. live
        .. ',"pending":' .. live .. ',"expired":' .. tonumber(expired or 0) .. ',"countableInMs":0' .. epoch
        .. ',"changed":true,"existed":' .. (existed and 'true' or 'false') .. ',"session":' .. state
        .. ',"ttlSeconds":null,"modifiedAt":' .. seen .. ',"modifiedBy":' .. (by and cjson.encode(by) or 'null')
        .. ',"lookedUpAt":' .. (looked_up_at or 'null') .. '}}'
    end
  end
end

--@include lib/clock
--@include lib/text
--@include lib/environment
--@include lib/session
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
