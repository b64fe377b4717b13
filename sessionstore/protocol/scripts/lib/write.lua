-- Shared by all scripts that write one session. Everything that can fail is read before the first write, the leases and
-- the head too: Redis does not undo a script that fails midway. The index is written first.
--
-- All of them are called with the same first keys and arguments:
--   KEYS[1] session  [2] index  [3] head  [4] leases  [5] acks  [6] views  [7] environments  [8] changes (channel)
--   ARGV[1] id of this write  [2] TTL, ms  [3] lease, ms  [4] highest revision the writer knows  [5] '1' if it waits
--        [6] environment  [7] session key  [8] who writes, for people; '' if unknown

local session_key = ARGV[7]
local ttl = tonumber(ARGV[2])
local lease = tonumber(ARGV[3])
local now = now_ms()
local head = open_head(KEYS[3], KEYS[8], now, lease, tonumber(ARGV[4]))

-- A head behind the session was lost, and leases may have been lost with it.
local function compare_with_head(session)
  local rev = math.max(session.rev, session.expiryRev)
  if rev > head.rev then
    head.rev = rev
    forget_leases(head, now, lease)
  end
end

-- How many leases live, and how many of them the caller waits for until they have applied `target_rev`.
local function count_pending(target_rev)
  local live = redis.call('ZCARD', KEYS[4])
  if live == 0 then
    return 0, 0
  end
  local gone = purge_leases(KEYS[4], KEYS[5], KEYS[6], KEYS[3], now, KEYS[2])
  head.expired = head.expired + gone
  if target_rev > head.rev then
    -- No view can have applied a revision that is not published yet.
    return live - gone, live - gone
  end
  return count_leases(KEYS[4], KEYS[5], target_rev)
end

-- Persist a detected history loss even if this write takes no revision.
local function keep_loss()
  if head.forgotten then
    keep_head_state(KEYS[3], head)
  end
end

-- Write `session` if `changed`, else only touch it, and publish the change to the views.
local function commit_session(session, changed, existed)
  compare_with_head(session)
  local moved = see_session(session, now, ttl)
  local target_rev = (changed or moved) and head.rev + 1 or math.max(session.rev, session.expiryRev)
  -- Only new sessions make the index grow.
  local gone = existed and {} or gone_members(KEYS[2], head, now, ttl)
  local live, pending = count_pending(target_rev)
  local prev, kind, body, state
  drop_members(KEYS[2], gone)
  -- This comes first: it fails if the index is of another type.
  redis.call('ZADD', KEYS[2], int(session.lastSeenAt), session_key)
  if changed then
    local expires_at = now + ttl_of(session, ttl)
    -- Only a new TTL of its own may shorten a session's life: a store with a shorter TTL may not.
    local has_new_ttl = session.stored and session.ttlSeconds ~= whole(session.stored[11] or '0')
    session.expiresAt = has_new_ttl and expires_at or math.max(session.expiresAt, expires_at)
    prev = advance_head(KEYS[3], head, ARGV[1], ttl)
    session.rev = head.rev
    save_session(KEYS[1], session, now, ARGV[8])
    state = session_json(session_key, session)
    kind, body = 'set', '"session":' .. state
  else
    redis.call('HSET', KEYS[1], 'lastSeenAt', int(session.lastSeenAt))
    if moved then
      prev = advance_head(KEYS[3], head, ARGV[1], ttl)
      redis.call('HSET', KEYS[1], 'expiresAt', int(session.expiresAt), 'expiryRev', int(head.rev))
      redis.call('PEXPIREAT', KEYS[1], int(session.expiresAt + COLLECT_AFTER_MS))
      kind = 'expiry'
      body = '"sessions":[[' .. cjson.encode(session_key) .. ',' .. int(session.expiresAt) .. ','
        .. int(session.lastSeenAt) .. ']]'
    else
      keep_loss()
    end
  end
  if kind then
    publish_change(KEYS[8], kind, head, prev, now, ARGV[5], body)
  end
  state = with_details(state or session_json(session_key, session), session)
  return written(now, head, target_rev, live, pending, changed, existed, state)
end
