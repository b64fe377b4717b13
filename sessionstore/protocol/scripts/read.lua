-- Read many sessions, for listing and snapshots.
--
-- KEYS    sessions
-- ARGV    their session keys, in the same order
--
-- Returns {"now": ms, "sessions": […]} with those that exist

--@include lib/clock
--@include lib/session

local now = now_ms()
local sessions = {}
for i = 1, #KEYS do
  local session = load_session(KEYS[i], now)
  if session then
    sessions[#sessions + 1] = with_details(session_json(ARGV[i], session), session)
  end
end
return '{"now":' .. int(now) .. ',"sessions":[' .. table.concat(sessions, ',') .. ']}'
