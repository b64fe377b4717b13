-- One step of a snapshot: read the sessions that the step before has found in the index, and find the next ones. It
-- says at which revision it was read, so that a view can prove that the steps and the messages it receives are of one
-- history. Every member that is in the index from the first step to the last is found at least once.
--
-- KEYS[1] head  [2] index  [3..] sessions to read
-- ARGV[1] cursor, '0' to begin  [2] about how many members to find; '0': none  [3..] the session keys, in the order of
--         KEYS
--
-- Returns {"now": ms, "rev": 0 if nothing was ever written, "id": '', "cursor": text, '0' at the end,
--          "members": [session key, …], "sessions": those of the sessions to read that exist,
--          "corrupt": the session keys of those that are corrupt}

--@include lib/clock
--@include lib/text
--@include lib/layout
--@include lib/periods
--@include lib/id_array
--@include lib/session

local now = now_ms()
local head = redis.call('HMGET', KEYS[1], 'rev', 'id', 'layout')
check_layout(head[1], head[3])

local cursor = ARGV[1]
local members = {}
if ARGV[2] ~= '0' then
  local page = redis.call('ZSCAN', KEYS[2], cursor, 'COUNT', ARGV[2])
  cursor = page[1]
  for i = 1, #page[2], 2 do
    if is_utf8(page[2][i]) then
      members[#members + 1] = cjson.encode(page[2][i])
    end
  end
end

local sessions, corrupted = {}, {}
for i = 3, #KEYS do
  local json, corrupt = read_session_json(KEYS[i], ARGV[i], now)
  if corrupt then
    corrupted[#corrupted + 1] = cjson.encode(ARGV[i])
  elseif json then
    sessions[#sessions + 1] = json
  end
end

return '{"now":' .. int(now) .. ',"rev":' .. (head[1] or '0') .. ',"id":' .. cjson.encode(head[2] or '')
  .. ',"cursor":"' .. cursor .. '","members":[' .. table.concat(members, ',') .. ']'
  .. ',"sessions":[' .. table.concat(sessions, ',') .. '],"corrupt":[' .. table.concat(corrupted, ',') .. ']}'
