-- Remove a session, also one whose record is corrupt. If it does not exist, nothing changes, and the caller waits for the head: it may repeat a deletion
-- whose revision is no longer stored.
--
-- KEYS[1..11], ARGV[1..10]  as in lib/write.lua
-- ARGV[11] If-Match: '', '*' or ',7,9,'
--
-- Returns   lib/reply.lua, written, with no session; or lib/failure.lua with the status unknown_environment,
--           precondition_failed, corrupt_session (only with If-Match)
-- Publishes 'delete' if the session existed

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
local existed = session ~= nil or corrupt
if corrupt then
  if ARGV[11] ~= '' then
    return failure('corrupt_session', session_key)
  end
elseif not precondition_holds(session, ARGV[11], '') then
  return failure('precondition_failed', session and int(session.rev) or '')
end

if session then
  compare_with_head(session)
end
local target_rev = existed and head.rev + 1 or head.rev
local gone = gone_members(KEYS[2], head, now, ttl)
local live, pending = count_pending(target_rev)

-- This comes first: it works on a Redis that is out of memory, and makes room for the rest.
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], session_key)
if existed then
  local prev = advance_head(KEYS[3], KEYS[2], head, ARGV[1], now, ttl, KEEP_STEP_MS)
  drop_members(KEYS[2], gone)
  if usage and session then
    usage.enter(session_key, session, false)
  end
  if head.keptUntil < FOREVER and redis.call('ZCARD', KEYS[2]) == 0 then
    -- The next index has no time to live: let the next revision set it.
    redis.call('HSET', KEYS[3], 'keptUntil', 0)
  end
  publish_change(KEYS[8], 'delete', head, prev, now, ARGV[5], '"sessionKey":' .. cjson.encode(session_key))
else
  keep_loss()
end
return written(now, head, target_rev, live, pending, existed, existed)
