-- Record when API keys were last used: at most one write for each key and interval, however many gateways ask.
-- lastUsedAt never goes back, a time in the future counts as now, and an unknown id or a corrupt record is skipped.
--
-- KEYS[1] api keys
-- ARGV[1] interval, ms
-- ARGV[2..] pairs: id, when it was used (ms)
--
-- Returns {"status": "ok", "now": ms, "written": how many records}

--@include lib/clock
--@include lib/text
--@include lib/api_key

local now = now_ms()
local hashes = {}
for _, hash in ipairs(redis.call('HKEYS', KEYS[1])) do
  hashes[id_of(hash)] = hash
end
local written = 0
for i = 2, #ARGV, 2 do
  local hash = hashes[ARGV[i]]
  local key = hash and parse_key(hash, redis.call('HGET', KEYS[1], hash))
  local used_at = math.min(now, tonumber(ARGV[i + 1]))
  if key and used_at - (key.lastUsedAt or -math.huge) >= tonumber(ARGV[1]) then
    key.lastUsedAt = used_at
    redis.call('HSET', KEYS[1], hash, key_json(key))
    written = written + 1
  end
end
return '{"status":"ok","now":' .. int(now) .. ',"written":' .. written .. '}'
