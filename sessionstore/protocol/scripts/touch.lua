-- Touch sessions: record when they were last seen, and looked up. Neither time goes back, and a time in the future
-- counts as now.
-- A session that has expired is not revived, and a corrupt one is passed over.
--
-- KEYS[1] index  [2] head  [3] changes (channel)  [4] usage  [5] ledger  [6..] sessions
-- ARGV[1] id of this write  [2] TTL, ms  [3] lease, ms  [4] highest revision the writer knows
-- ARGV[5] environment  [6..] pairs, one for each session: session key, when it was seen (ms)
--
-- Returns   {"status": "ok", "now": ms, "rev": head, "touched": how many sessions}
-- Publishes one 'expiry' for all sessions whose expiry moved

--@include lib/clock
--@include lib/text
--@include lib/periods
--@include lib/id_array
--@include lib/session
--@include lib/layout
--@include lib/primary
--@include lib/revision
--@include lib/usage

local now = now_ms()
local ttl = tonumber(ARGV[2])
local touched = {}
local moved = {}
for i = 6, #KEYS do
  local session = load_session(KEYS[i], now)
  if session then
    local session_key = ARGV[2 * i - 6]
    local seen = math.min(now, tonumber(ARGV[2 * i - 5]))
    local extended = see_session(session, seen, ttl)
    session.lookedUpAt = math.max(session.lookedUpAt, seen)
    touched[#touched + 1] = { KEYS[i], session_key, session, extended }
    if extended then
      moved[#moved + 1] = '[' .. cjson.encode(session_key) .. ',' .. int(session.expiresAt) .. ','
        .. int(session.lastSeenAt) .. ']'
    end
  end
end

local head = open_head(KEYS[2], KEYS[3], now, tonumber(ARGV[3]), tonumber(ARGV[4]))
local usage = #moved > 0 and open_usage(head, KEYS[4], KEYS[5], ARGV[5])
local gone = #touched > 0 and gone_members(KEYS[1], head, now, ttl)
local prev = #moved > 0 and advance_head(KEYS[2], KEYS[1], head, ARGV[1], now, ttl, TOUCH_KEEP_STEP_MS)
if gone then
  drop_members(KEYS[1], gone)
end
for _, entry in ipairs(touched) do
  local key, session_key, session, extended = unpack(entry)
  redis.call('HSET', key, 'lastSeenAt', int(session.lastSeenAt), 'lookedUpAt', int(session.lookedUpAt))
  redis.call('ZADD', KEYS[1], int(session.lastSeenAt), session_key)
  if extended then
    redis.call('HSET', key, 'expiresAt', int(session.expiresAt), 'expiryRev', int(head.rev))
    redis.call('PEXPIREAT', key, int(session.expiresAt + COLLECT_AFTER_MS))
    if usage then
      usage.enter(session_key, session, true)
    end
  end
end
if prev then
  publish_change(KEYS[3], 'expiry', head, prev, now, '0', '"sessions":[' .. table.concat(moved, ',') .. ']')
end
return '{"status":"ok","now":' .. int(now) .. ',"rev":' .. int(head.rev) .. ',"touched":' .. #touched .. '}'
