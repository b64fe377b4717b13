-- Give an environment its catalog and register it, or remove both. The same run deactivates, in all sessions, what the
-- new catalog no longer offers, so that no PUT can slip in between. Applying the current catalog again changes nothing:
-- no revision, no message.
--
-- KEYS must name the sessions, but only if something may have to be deactivated. The first call names none; if the
-- script needs them, its answer lists the missing members of the index.
--
-- KEYS[1] environments  [2] catalog  [3] catalog:mocks  [4] catalog:local  [5] catalog:scenarios
--     [6] index  [7] head  [8] leases  [9] acks  [10] views  [11] changes (channel)  [12] usage  [13] ledger  [14..] sessions
-- ARGV[1] id of this write; its n-th revision has the id and '.' and n  [2] lease, ms  [3] highest revision the writer
--         knows
--     [4] '1' if it waits  [5] environment  [6] who writes, for people; '' if unknown  [7] SHA-256 of the catalog's JSON
--     [8] the JSON, or '' to remove the catalog
--     [9] how many published mocks, [10] scenario-local mocks, [11] scenarios there are
--     [12..] pairs: published mock, name; then local mock, scenario; then scenario, its JSON; then the session keys of
--     KEYS[14..]
--
-- Returns   lib/reply.lua, written, with no session, and "previous": the catalog before, or null if nothing changed
--           or there was none, "sessions": how many were changed; `existed`: whether there was a catalog. Or
--           {"status": "need_sessions", "missing": [session key, …], "more": whether that is not all}
-- Publishes 'set' for each session that was changed, then 'catalog'

--@include lib/clock
--@include lib/text
--@include lib/periods
--@include lib/id_array
--@include lib/session
--@include lib/layout
--@include lib/primary
--@include lib/revision
--@include lib/lease
--@include lib/usage
--@include lib/reply

-- Session keys of one answer, at most.
local MAX_MISSING = 1000

local now = now_ms()
local lease = tonumber(ARGV[2])
local removes = ARGV[8] == ''
local head = open_head(KEYS[7], KEYS[11], now, lease, tonumber(ARGV[3]))
local stored = redis.call('HMGET', KEYS[2], 'digest', 'json')
local usage = open_usage(head, KEYS[12], KEYS[13], ARGV[5])
local registered = redis.call('SISMEMBER', KEYS[1], ARGV[5]) == 1

-- The pairs of one kind, from ARGV[first] on, by id.
local function pairs_of(first, count)
  local found = {}
  for i = first, first + 2 * count - 1, 2 do
    found[ARGV[i]] = ARGV[i + 1]
  end
  return found, first + 2 * count
end

local mocks, local_mocks, scenarios, next_argument
mocks, next_argument = pairs_of(12, tonumber(ARGV[9]))
local_mocks, next_argument = pairs_of(next_argument, tonumber(ARGV[10]))
scenarios, next_argument = pairs_of(next_argument, tonumber(ARGV[11]))

-- Whether a hash has a field that the new catalog lacks.
local function lacks(key, offered)
  for _, id in ipairs(redis.call('HKEYS', key)) do
    if not offered[id] then
      return true
    end
  end
  return false
end

local changed = removes and (registered or stored[1] ~= false) or not removes and stored[1] ~= ARGV[7]
local named = {}
if changed then
  local lost_mocks, lost_scenarios = lacks(KEYS[3], mocks), lacks(KEYS[5], scenarios)
  redis.call('HLEN', KEYS[4])
  -- Before its first catalog an environment accepts any id, so every session must be checked.
  if removes or not stored[1] or lost_mocks or lost_scenarios then
    for i = 14, #KEYS do
      named[ARGV[next_argument + i - 14]] = true
    end
    local missing = {}
    local more = false
    for _, member in ipairs(redis.call('ZRANGE', KEYS[6], 0, -1)) do
      if not named[member] and is_utf8(member) then
        more = #missing == MAX_MISSING
        if more then
          break
        end
        missing[#missing + 1] = cjson.encode(member)
      end
    end
    if #missing > 0 then
      return '{"status":"need_sessions","missing":[' .. table.concat(missing, ',')
        .. '],"more":' .. tostring(more) .. '}'
    end
  end
end

-- The session without the ids that are no longer offered, or nil if it uses none of them.
local function trimmed(key)
  local used = redis.pcall('HMGET', key, 'scenario', 'overrides')
  if used.err then
    return nil
  end
  local scenario_stays = not used[1] or scenarios[used[1]]
  local kept = {}
  local all_kept = true
  if used[2] then
    for id in string.gmatch(used[2], '"([^"]+)"') do
      if mocks[id] then
        kept[#kept + 1] = '"' .. id .. '"'
      else
        all_kept = false
      end
    end
  end
  local session = not (scenario_stays and all_kept) and load_session(key, now)
  if not session then
    return nil
  end
  session.scenario = scenario_stays and session.scenario or nil
  session.overrides = '[' .. table.concat(kept, ',') .. ']'
  return session
end

-- Everything is read before the first write: a script that fails midway is not undone.
local affected = {}
for i = 14, #KEYS do
  local session_key, key = ARGV[next_argument + i - 14], KEYS[i]
  local session = named[session_key] and trimmed(key)
  if session then
    if session.rev > head.rev then
      head.rev = session.rev
      forget_leases(head, now, lease)
    end
    affected[#affected + 1] = { key, session_key, session }
  end
end
local target_rev = changed and head.rev + #affected + 1
  or tonumber(redis.call('HGET', KEYS[7], 'catalogRev') or '0')
head.expired = head.expired + purge_leases(KEYS[8], KEYS[9], KEYS[10], KEYS[7], now)
local live, pending = count_leases(KEYS[8], KEYS[9], target_rev)

if removes then
  redis.call('SREM', KEYS[1], ARGV[5])
else
  redis.call('SADD', KEYS[1], ARGV[5])
end
if changed then
  local first_rev = head.rev
  local function next_revision()
    return advance_head(KEYS[7], KEYS[6], head, ARGV[1] .. '.' .. int(head.rev - first_rev + 1), now, 0, KEEP_STEP_MS)
  end

  for _, entry in ipairs(affected) do
    local key, session_key, session = unpack(entry)
    local prev = next_revision()
    session.rev = head.rev
    save_session(key, session, now, ARGV[6])
    if usage then
      usage.enter(session_key, session, true)
    end
    publish_change(KEYS[11], 'set', head, prev, now, '0', '"session":' .. session_json(session_key, session))
  end

  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
  local function fill(key, entries)
    for id, value in pairs(entries) do
      redis.call('HSET', key, id, value)
    end
  end
  fill(KEYS[3], mocks)
  fill(KEYS[4], local_mocks)
  fill(KEYS[5], scenarios)
  if not removes then
    redis.call('HSET', KEYS[2], 'digest', ARGV[7], 'json', ARGV[8], 'appliedAt', int(now))
  end
  local prev = next_revision()
  redis.call('HSET', KEYS[7], 'catalogRev', int(head.rev), 'keptUntil', int(FOREVER))
  redis.call('PERSIST', KEYS[7])
  redis.call('PERSIST', KEYS[6])
  publish_change(KEYS[11], 'catalog', head, prev, now, ARGV[4], '"catalog":' .. (removes and 'null' or ARGV[8]))
elseif head.is_unsaved then
  keep_head_state(KEYS[7], head, now)
end

local reply = written(now, head, target_rev, live, pending, changed, stored[1] ~= false)
return string.sub(reply, 1, -2) .. ',"previous":' .. (changed and stored[2] or 'null')
  .. ',"sessions":' .. #affected .. '}'
