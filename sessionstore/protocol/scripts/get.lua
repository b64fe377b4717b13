-- Read one session. Reading does not count as seen.
--
-- KEYS[1] session  [2] environments
-- ARGV[1] environment  [2] session key
--
-- Returns {"status": "ok", "now": ms, "session": … or null}; or lib/failure.lua with the status
--         unknown_environment, corrupt_session

--@include lib/clock
--@include lib/text
--@include lib/environment
--@include lib/periods
--@include lib/id_array
--@include lib/session
--@include lib/failure

if not environment_is_known(KEYS[2], ARGV[1]) then
  return failure('unknown_environment', ARGV[1])
end
local now = now_ms()
local session, corrupt = load_session(KEYS[1], now)
if corrupt then
  return failure('corrupt_session', ARGV[2])
end
return '{"status":"ok","now":' .. int(now) .. ',"session":'
  .. (session and with_details(session_json(ARGV[2], session), session) or 'null') .. '}'
