-- Record when API keys were last used: at most one write for each key and interval, however many gateways ask.
-- lastUsedAt never goes back, a time in the future counts as now, and an unknown id is skipped.
--
-- KEYS[1] api keys
-- ARGV[1] interval, ms
-- ARGV[2..] pairs: id, when it was used (ms)
--
-- Returns {"status": "ok", "now": ms, "written": how many records}

--@include lib/clock
--@include lib/api_key

local now = now_ms()
local written = 0
for i = 2, #ARGV, 2 do
  local hash, key = find_key(KEYS[1], ARGV[i])
  local used_at = math.min(now, tonumber(ARGV[i + 1]))
  if hash and used_at - (key.lastUsedAt or -math.huge) >= tonumber(ARGV[1]) then
    key.lastUsedAt = used_at
    redis.call('HSET', KEYS[1], hash, key_json(key))
    written = written + 1
  end
end
return '{"status":"ok","now":' .. int(now) .. ',"written":' .. written .. '}'
