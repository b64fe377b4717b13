-- Every API key's record, including revoked and expired ones.
--
-- KEYS[1] api keys
--
-- Returns {"now": ms, "keys": {SHA-256 of the key: its record, …}}

--@include lib/clock

local stored = redis.call('HGETALL', KEYS[1])
local keys = {}
for i = 1, #stored, 2 do
  keys[#keys + 1] = cjson.encode(stored[i]) .. ':' .. stored[i + 1]
end
return '{"now":' .. int(now_ms()) .. ',"keys":{' .. table.concat(keys, ',') .. '}}'
