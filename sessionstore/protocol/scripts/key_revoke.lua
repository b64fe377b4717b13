-- Revoke an API key for good. Revoking it again changes nothing.
--
-- KEYS[1] api keys
-- ARGV[1] id
--
-- Returns {"status": "ok", "now": ms, "key": …}; or lib/failure.lua with the status key_not_found

--@include lib/clock
--@include lib/failure
--@include lib/api_key

local hash, key = find_key(KEYS[1], ARGV[1])
if not hash then
  return failure('key_not_found', ARGV[1])
end
local now = now_ms()
if not key.revokedAt then
  key.revokedAt = now
  redis.call('HSET', KEYS[1], hash, key_json(key))
end
return '{"status":"ok","now":' .. int(now) .. ',"key":' .. key_json(key) .. '}'
