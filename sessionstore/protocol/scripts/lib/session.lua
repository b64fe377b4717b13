-- One session: its hash, and its JSON as replies and messages carry it.
--
-- The hash has one field for each property, named as in the HTTP API; a property that is null, empty or 0 has no field.
-- expiryRev is the revision that last moved the session's expiry. A write that finds the session unchanged waits for
-- that revision too: a view that has not applied it would let the session expire early.
-- ttlSeconds is the session's own TTL, 0 for the store's. modifiedAt and modifiedBy say when and by whom the state was
-- last set, and lookedUpAt when a proxy last looked the session up. Views are told none of these.

-- Bytes of a label, a scenario or a writer's name: 256 code points.
local MAX_TEXT_BYTES = 1024

local function is_text(text)
  return not text or #text <= MAX_TEXT_BYTES and is_utf8(text)
end

-- The session in `key`, or nil if it does not exist or has expired. `stored` is what HMGET answered, for save_session.
-- The second result is true if the key holds anything else than a session: it is corrupt.
local function load_session(key, now)
  local value = redis.pcall('HMGET', key, 'rev', 'expiresAt', 'lastSeenAt', 'createdAt', 'label', 'scenario',
    'overrides', 'globalDelayMs', 'globalDelayMaxMs', 'expiryRev', 'ttlSeconds', 'modifiedAt', 'modifiedBy',
    'lookedUpAt')
  if value.err then
    if string.find(tostring(value.err), 'WRONGTYPE', 1, true) then
      return nil, true
    end
    error(value)
  end
  if not value[1] and not value[2] then
    return nil, redis.call('EXISTS', key) == 1
  end
  local session = {
    rev = whole(value[1]),
    expiresAt = whole(value[2]),
    lastSeenAt = whole(value[3]),
    createdAt = whole(value[4]),
    label = value[5] or nil,
    scenario = value[6] or nil,
    overrides = value[7] or '[]',
    globalDelayMs = whole_or_0(value[8]),
    globalDelayMaxMs = whole_or_0(value[9]),
    expiryRev = whole_or_0(value[10]),
    ttlSeconds = whole_or_0(value[11]),
    modifiedAt = whole_or_0(value[12]),
    modifiedBy = value[13] or nil,
    lookedUpAt = whole_or_0(value[14]),
    stored = value,
  }
  if not (session.rev and session.expiresAt and session.lastSeenAt and session.createdAt
      and session.globalDelayMs and session.globalDelayMaxMs and session.expiryRev and session.ttlSeconds
      and session.modifiedAt and session.lookedUpAt and is_id_array(session.overrides)
      and is_text(session.label) and is_text(session.scenario) and is_text(session.modifiedBy)) then
    return nil, true
  end
  if session.expiresAt <= now then
    return nil
  end
  return session
end

local function new_session(now)
  return {
    rev = 0, expiresAt = 0, lastSeenAt = now, createdAt = now, overrides = '[]', globalDelayMs = 0,
    globalDelayMaxMs = 0, expiryRev = 0, ttlSeconds = 0, modifiedAt = 0, lookedUpAt = 0,
  }
end

-- Save a session with a new state, set by `by` ('' if unknown) at `now`. No cleared field may stay, nor any field of an
-- expired session with the same key. Usually fields are only set or changed, and nothing is deleted.
local function save_session(key, session, now, by)
  session.modifiedAt = now
  session.modifiedBy = by ~= '' and by or nil
  local seen = int(session.lastSeenAt)
  local fields = { 'rev', int(session.rev), 'lastSeenAt', seen, 'expiresAt', int(session.expiresAt) }
  local last = #fields
  -- Indexed like the fields that load_session reads.
  local stored = session.stored or {}
  local cleared = {}
  local function add(was, name, value)
    if value then
      fields[last + 1], fields[last + 2] = name, value
      last = last + 2
    elseif was then
      cleared[#cleared + 1] = name
    end
  end
  add(stored[5], 'label', session.label)
  add(stored[6], 'scenario', session.scenario)
  add(stored[7], 'overrides', session.overrides ~= '[]' and session.overrides)
  add(stored[8], 'globalDelayMs', session.globalDelayMs > 0 and int(session.globalDelayMs))
  add(stored[9], 'globalDelayMaxMs', session.globalDelayMaxMs > 0 and int(session.globalDelayMaxMs))
  add(stored[10], 'expiryRev')
  add(stored[11], 'ttlSeconds', session.ttlSeconds > 0 and int(session.ttlSeconds))
  -- Last, since Redis looks through a small hash from its beginning.
  add(stored[12], 'modifiedAt', session.lastSeenAt == now and seen or int(now))
  add(stored[13], 'modifiedBy', session.modifiedBy)
  if not session.stored then
    add(nil, 'createdAt', int(session.createdAt))
    redis.call('DEL', key)
  elseif #cleared > 0 then
    redis.call('HDEL', key, unpack(cleared))
  end
  redis.call('HSET', key, unpack(fields))
  redis.call('PEXPIREAT', key, int(session.expiresAt + COLLECT_AFTER_MS))
end

local function session_json(session_key, session)
  return string.format(
    '{"sessionKey":%s,"rev":%d,"label":%s,"scenario":%s,"overrides":%s,"globalDelayMs":%d,"globalDelayMaxMs":%d,'
      .. '"createdAt":%d,"lastSeenAt":%d,"expiresAt":%d}',
    cjson.encode(session_key), session.rev, session.label and cjson.encode(session.label) or 'null',
    session.scenario and cjson.encode(session.scenario) or 'null', session.overrides, session.globalDelayMs,
    session.globalDelayMaxMs, session.createdAt, session.lastSeenAt, session.expiresAt)
end

-- Whether JSON takes the text as it is, as a number below 2^53; not 0.
local function is_number(text)
  return #text < 16 and string.find(text, '^[1-9]%d*$') ~= nil
end

-- The JSON of the session in `key`, as load_session and session_json make it, in two thirds of their time: a snapshot
-- reads many. A session as save_session writes it is copied; only another one is converted.
local function read_session_json(key, session_key, now)
  local value = redis.pcall('HMGET', key, 'rev', 'createdAt', 'lastSeenAt', 'expiresAt', 'label', 'scenario',
    'overrides', 'globalDelayMs', 'globalDelayMaxMs')
  local rev, created, seen, expires, label, scenario, overrides, delay, max_delay = unpack(value)
  if rev and created and seen and expires and is_number(rev) and is_number(created) and is_number(seen)
      and is_number(expires) and (not delay or is_number(delay)) and (not max_delay or is_number(max_delay))
      and (not overrides or is_id_array(overrides)) and is_text(label) and is_text(scenario) then
    return tonumber(expires) > now and '{"sessionKey":' .. cjson.encode(session_key)
      .. ',"rev":' .. rev
      .. ',"label":' .. (label and cjson.encode(label) or 'null')
      .. ',"scenario":' .. (scenario and cjson.encode(scenario) or 'null')
      .. ',"overrides":' .. (overrides or '[]')
      .. ',"globalDelayMs":' .. (delay or '0')
      .. ',"globalDelayMaxMs":' .. (max_delay or '0')
      .. ',"createdAt":' .. created
      .. ',"lastSeenAt":' .. seen
      .. ',"expiresAt":' .. expires .. '}' or nil
  end
  local session, corrupt = load_session(key, now)
  return session and session_json(session_key, session), corrupt
end

-- A session with its details, from its JSON without them.
local function with_details(json, session)
  return string.format('%s,"ttlSeconds":%s,"modifiedAt":%s,"modifiedBy":%s,"lookedUpAt":%s}', string.sub(json, 1, -2),
    session.ttlSeconds > 0 and int(session.ttlSeconds) or 'null',
    session.modifiedAt > 0 and int(session.modifiedAt) or 'null',
    session.modifiedBy and cjson.encode(session.modifiedBy) or 'null',
    session.lookedUpAt > 0 and int(session.lookedUpAt) or 'null')
end

-- The session's TTL in ms: its own, or the store's.
local function ttl_of(session, ttl)
  return session.ttlSeconds > 0 and session.ttlSeconds * 1000 or ttl
end

-- Touch a session that was seen at `seen`. Returns true if that moves its expiry, which it does only by more than a
-- tenth of its TTL. So Redis and every view agree on the expiry without a message per request.
local function see_session(session, seen, store_ttl)
  local ttl = ttl_of(session, store_ttl)
  session.lastSeenAt = math.max(session.lastSeenAt, seen)
  if session.lastSeenAt + ttl - session.expiresAt > ttl / 10 then
    session.expiresAt = session.lastSeenAt + ttl
    return true
  end
  return false
end
