-- Shared by all scripts that write one session. Everything that can fail is read before the first write, the leases and
-- the head too: Redis does not undo a script that fails midway. The index is written first.
--
-- All of them are called with the same first keys and arguments:
--   KEYS[1] session  [2] index  [3] head  [4] leases  [5] acks  [6] views  [7] environments  [8] changes (channel)
--   [9] usage  [10] ledger, see lib/usage.lua  [11] unregistered (sorted set): environments that no catalog registers, by
--   the head's keptUntil
--   ARGV[1] id of this write  [2] TTL, ms  [3] lease, ms  [4] highest revision the writer knows  [5] '1' if it waits
--        [6] environment  [7] session key  [8] who writes, for people; '' if unknown
--        [9] quotas of what is counted, '' for none: sessions of an environment ',' bytes of a project's sessions
--        [10] quota of environments of a project that no catalog registers, '' for none

local session_key = ARGV[7]
local ttl = tonumber(ARGV[2])
local lease = tonumber(ARGV[3])
local now = now_ms()
local head = open_head(KEYS[3], KEYS[8], now, lease, tonumber(ARGV[4]))
local usage = open_usage(head, KEYS[9], KEYS[10], ARGV[6])

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
  if head.is_unsaved then
    keep_head_state(KEYS[3], head, now)
  end
end

-- Write `session` if `changed`, else only touch it, and publish the change to the views.
local function commit_session(session, changed, existed)
  if ARGV[9] ~= '' and changed then
    -- A session that does not take more bytes is never refused.
    if not (usage and usage.complete) then
      return failure('uncounted', '')
    end
    local exceeded, dropped_all = usage.exceeded(session_key, session, existed, ARGV[9], now)
    if exceeded then
      return dropped_all and failure('quota_exceeded', exceeded) or failure('uncounted', '')
    end
  end
  compare_with_head(session)
  local moved = see_session(session, now, ttl)
  local target_rev = (changed or moved) and head.rev + 1 or math.max(session.rev, session.expiryRev)
  -- Now and then, an environment that no catalog registers is listed.
  local lists = (changed or moved) and head.keptUntil < now + math.max(head.maxTtl, ttl) + KEEP_MS - KEEP_STEP_MS
    and redis.call('EXISTS', KEYS[7]) == 0
  if lists then
    local listed = redis.call('ZCOUNT', KEYS[11], '(' .. int(now), '+inf')
    if head.missing and not existed and listed >= (tonumber(ARGV[10]) or math.huge) then
      return failure('quota_exceeded', 'environments ' .. ARGV[10])
    end
  end
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
    prev = advance_head(KEYS[3], KEYS[2], head, ARGV[1], now, ttl, KEEP_STEP_MS)
    session.rev = head.rev
    save_session(KEYS[1], session, now, ARGV[8])
    state = session_json(session_key, session)
    kind, body = 'set', '"session":' .. state
  else
    redis.call('HSET', KEYS[1], 'lastSeenAt', int(session.lastSeenAt))
    if moved then
      prev = advance_head(KEYS[3], KEYS[2], head, ARGV[1], now, ttl, KEEP_STEP_MS)
      redis.call('HSET', KEYS[1], 'expiresAt', int(session.expiresAt), 'expiryRev', int(head.rev))
      redis.call('PEXPIREAT', KEYS[1], int(session.expiresAt + COLLECT_AFTER_MS))
      kind = 'expiry'
      body = '"sessions":[[' .. cjson.encode(session_key) .. ',' .. int(session.expiresAt) .. ','
        .. int(session.lastSeenAt) .. ']]'
    else
      keep_loss()
    end
  end
  if usage and kind then
    usage.enter(session_key, session, true)
    if not existed then
      usage.drop_expired(now)
      usage.keep(now)
    end
  end
  if lists and head.keptUntil < FOREVER then
    local unlisted = redis.call('ZRANGEBYSCORE', KEYS[11], '-inf', int(now), 'LIMIT', 0, 1000)
    if #unlisted > 0 then
      redis.call('ZREM', KEYS[11], unpack(unlisted))
    end
    redis.call('ZADD', KEYS[11], int(head.keptUntil), ARGV[6])
    redis.call('PEXPIREAT', KEYS[11], redis.call('ZRANGE', KEYS[11], -1, -1, 'WITHSCORES')[2])
  end
  if #gone > 0 and head.keptUntil < FOREVER then
    -- It may have been empty for a moment, and so have no time to live.
    redis.call('PEXPIREAT', KEYS[2], int(head.keptUntil))
  end
  if kind then
    publish_change(KEYS[8], kind, head, prev, now, ARGV[5], body)
  end
  state = with_details(state or session_json(session_key, session), session)
  return written(now, head, target_rev, live, pending, changed, existed, state)
end
