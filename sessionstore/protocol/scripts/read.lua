-- Read many sessions, for listing and snapshots.
--
-- KEYS    sessions
-- ARGV    their session keys, in the same order
--
-- Returns {"now": ms, "sessions": those that exist, "corrupt": the session keys of corrupt ones}

--@include lib/clock
--@include lib/text
--@include lib/periods
--@include lib/id_array
--@include lib/session

local now = now_ms()
local sessions, corrupted = {}, {}
for i = 1, #KEYS do
  local session, corrupt = load_session(KEYS[i], now)
  if corrupt then
    corrupted[#corrupted + 1] = cjson.encode(ARGV[i])
  elseif session then
    sessions[#sessions + 1] = with_details(session_json(ARGV[i], session), session)
  end
end
return '{"now":' .. int(now) .. ',"sessions":[' .. table.concat(sessions, ',')
  .. '],"corrupt":[' .. table.concat(corrupted, ',') .. ']}'
