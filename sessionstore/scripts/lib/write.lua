-- The common end of each script that writes one session.
--
-- All of them are called with the same first keys and arguments:
--   KEYS[1] session  [2] index  [3] head  [4] leases  [5] acks  [6] views  [7] environments  [8] changes (channel)
--   ARGV[1] id of this write  [2] TTL, ms  [3] lease, ms  [4] highest revision the writer knows  [5] '1' if it waits
--        [6] environment  [7] session key

local session_key = ARGV[7]
local ttl = tonumber(ARGV[2])
local now = now_ms()
local head = open_head(KEYS[3], KEYS[8], now, tonumber(ARGV[3]), tonumber(ARGV[4]))

-- Answer for a write that has to wait for the revision `await`.
local function answer(await, changed, existed, body)
  head.expired = head.expired + purge_leases(KEYS[4], KEYS[5], KEYS[6], KEYS[3], now)
  local live, pending = standing(KEYS[4], KEYS[5], await)
  return written(now, head, await, live, pending, changed, existed, body)
end

-- Write `session` where `changed`, else only note that it was seen, and publish what views have to know.
local function commit_session(session, changed, existed)
  local reply_rev = session.rev
  local prev, kind, body
  local moved = see_session(session, now, ttl)
  if changed then
    session.expiresAt = math.max(session.expiresAt, now + ttl)
    prev = advance_head(KEYS[3], head, ARGV[1], ttl)
    session.rev = head.rev
    reply_rev = head.rev
    save_session(KEYS[1], session)
    kind, body = 'set', '"session":' .. session_json(session_key, session)
  else
    redis.call('HSET', KEYS[1], 'lastSeenAt', int(session.lastSeenAt))
    if moved then
      prev = advance_head(KEYS[3], head, ARGV[1], ttl)
      redis.call('HSET', KEYS[1], 'expiresAt', int(session.expiresAt))
      redis.call('PEXPIREAT', KEYS[1], int(session.expiresAt + COLLECT_AFTER_MS))
      kind = 'expiry'
      body = '"sessions":[[' .. cjson.encode(session_key) .. ',' .. int(session.expiresAt) .. ','
        .. int(session.lastSeenAt) .. ']]'
    elseif head.forgotten then
      redis.call('HSET', KEYS[3], 'rev', int(head.rev), 'settle', int(head.settle))
    end
  end
  redis.call('ZADD', KEYS[2], int(session.lastSeenAt), session_key)
  prune_index(KEYS[2], head, now)
  local reply = answer(reply_rev, changed, existed, session_json(session_key, session))
  if kind then
    publish_change(KEYS[8], kind, head, prev, now, ARGV[5], body)
  end
  return reply
end
