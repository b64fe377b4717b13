-- What the sessions of a project take, for quotas. A store with a quota has the project counted before its first write that
-- creates a session. From then on every script that changes a session keeps the count. Without a sound count the scripts
-- keep none, and such a store has it made anew.
--
-- usage (hash): bytes, the sum over all sessions; sessions:<environment>, their number; id, of the count; complete: '1' once
-- every session is in the ledger.
-- ledger (sorted set): '<bytes>:<environment>:<session key>' by expiresAt, ms. An entry is known by its text, so entering a
-- session twice counts it once.

-- How long a count is kept without a new session. After that, it is made anew.
local COUNT_KEEP_MS = 30 * 86400000

-- The count, or nil if there is none, or none that can be right. Every head of a counted project has the field `counted` or
-- no revision, so that other writes need not look. `head` may be nil.
local function open_usage(head, usage_key, ledger_key, own_environment)
  if head and not head.counted and head.id ~= '' then
    return nil
  end
  -- What Redis takes for a session without its texts, about.
  local SESSION_BYTES = 500
  -- Expired sessions that one script drops, at most.
  local DROP_LIMIT = 1000

  local value = redis.pcall('HMGET', usage_key, 'bytes', 'id', 'complete', 'sessions:' .. own_environment)
  local entries = value[1] and redis.pcall('ZCARD', ledger_key)
  local usage = { id = value[2], complete = value[3] == '1' }
  usage.bytes, usage.sessions = whole(value[1]), whole(value[4] or '0')
  if not (usage.bytes and usage.sessions and type(entries) == 'number' and entries * SESSION_BYTES <= usage.bytes
      and (entries > 0 or usage.bytes == 0)) then
    return nil
  end
  if head then
    head.is_counted = true
  end

  local function add(environment, bytes, sessions)
    if bytes ~= 0 then
      redis.call('HINCRBY', usage_key, 'bytes', int(bytes))
    end
    if sessions ~= 0 and redis.call('HINCRBY', usage_key, 'sessions:' .. environment, sessions) == 0 then
      redis.call('HDEL', usage_key, 'sessions:' .. environment)
    end
  end

  -- The bytes of the session as it is, and as it was loaded; nil if it is new.
  function usage.sizes(session_key, session)
    local fixed, stored = SESSION_BYTES + #session_key, session.stored
    return fixed + #(session.label or '') + #(session.scenario or '') + #session.overrides,
      stored and fixed + #(stored[5] or '') + #(stored[6] or '') + #(stored[7] or '[]')
  end

  -- Enter a session as it is from now on, or remove it if it does not exist any more.
  function usage.enter(session_key, session, exists)
    local new, old = usage.sizes(session_key, session)
    local place = ':' .. own_environment .. ':' .. session_key
    local bytes, sessions = 0, 0
    if old and (old ~= new or not exists) and redis.call('ZREM', ledger_key, int(old) .. place) == 1 then
      bytes, sessions = -old, -1
    end
    if exists and redis.call('ZADD', ledger_key, int(session.expiresAt), int(new) .. place) == 1 then
      bytes, sessions = bytes + new, sessions + 1
    end
    add(own_environment, bytes, sessions)
  end

  -- Drop sessions of the whole project that have expired; returns whether that was all of them.
  function usage.drop_expired(now)
    local gone = redis.call('ZRANGEBYSCORE', ledger_key, '-inf', int(now), 'LIMIT', 0, DROP_LIMIT)
    local bytes, sessions = 0, {}
    for _, entry in ipairs(gone) do
      local size, environment = string.match(entry, '^(%d+):([^:]*):')
      if size then
        bytes = bytes + tonumber(size)
        sessions[environment] = (sessions[environment] or 0) + 1
      end
    end
    if #gone > 0 then
      redis.call('ZREM', ledger_key, unpack(gone))
    end
    add('', -bytes, 0)
    for environment, count in pairs(sessions) do
      add(environment, 0, -count)
    end
    usage.bytes = usage.bytes - bytes
    usage.sessions = usage.sessions - (sessions[own_environment] or 0)
    return #gone < DROP_LIMIT
  end

  -- The quota that forbids the write, if one does, and its value; then, whether all that expired were dropped. `quotas` is
  -- the most sessions, ',' the most bytes; '' for any number.
  function usage.exceeded(session_key, session, existed, quotas, now)
    local most_sessions, most_bytes = string.match(quotas, '^(%d*),(%d*)$')
    local bytes, bytes_before = usage.sizes(session_key, session)
    local added = bytes - (existed and bytes_before or 0)
    local function exceeded()
      if not existed and usage.sessions >= (tonumber(most_sessions) or math.huge) then
        return 'sessions ' .. most_sessions
      end
      return added > 0 and usage.bytes + added > (tonumber(most_bytes) or math.huge) and 'bytes ' .. most_bytes
    end
    if exceeded() then
      local dropped_all = usage.drop_expired(now)
      return exceeded(), dropped_all
    end
  end

  function usage.keep(now)
    redis.call('PEXPIREAT', usage_key, int(now + COUNT_KEEP_MS))
    redis.call('PEXPIREAT', ledger_key, int(now + COUNT_KEEP_MS))
  end

  return usage
end
