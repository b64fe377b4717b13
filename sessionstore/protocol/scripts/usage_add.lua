-- Enter sessions of one environment into the count. One that is in it already is not counted twice. Without sessions: from
-- now on, the scripts keep the count for this environment.
--
-- KEYS[1] usage  [2] ledger  [3] head  [4..] sessions
-- ARGV[1] environment  [2..] the session keys, in the order of KEYS
--
-- Returns {"status": "ok"}

--@include lib/clock
--@include lib/text
--@include lib/periods
--@include lib/id_array
--@include lib/session
--@include lib/usage

local now = now_ms()
local usage = open_usage(nil, KEYS[1], KEYS[2], ARGV[1])
if usage then
  if redis.call('EXISTS', KEYS[3]) == 1 then
    redis.call('HSET', KEYS[3], 'counted', '1')
  end
  for i = 4, #KEYS do
    local session = load_session(KEYS[i], now)
    if session then
      usage.enter(ARGV[i - 2], session, true)
    end
  end
end
return '{"status":"ok"}'
