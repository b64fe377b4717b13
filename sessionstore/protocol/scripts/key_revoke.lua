-- Revoke an API key for good. Revoking it again changes nothing. A corrupt record is removed.
--
-- KEYS[1] api keys
-- ARGV[1] id
--
-- Returns {"status": "ok", "now": ms, "key": …}; or lib/failure.lua with the status key_not_found

--@include lib/clock
--@include lib/text
--@include lib/failure
--@include lib/api_key

local hash = find_hash(KEYS[1], ARGV[1])
if not hash then
  return failure('key_not_found', ARGV[1])
end
local now = now_ms()
local key = parse_key(hash, redis.call('HGET', KEYS[1], hash))
if not key then
  redis.call('HDEL', KEYS[1], hash)
  key = { id = ARGV[1], name = 'corrupt', createdAt = 0, revokedAt = now }
elseif not key.revokedAt then
  key.revokedAt = now
  redis.call('HSET', KEYS[1], hash, key_json(key))
end
return '{"status":"ok","now":' .. int(now) .. ',"key":' .. key_json(key) .. '}'
