-- Store a new API key. Revoked and expired keys stay as history; the oldest go if there are too many.
--
-- KEYS[1] api keys
-- ARGV[1] SHA-256 of the key  [2] name  [3] project, or '' for every project  [4] expiresAt, ms, or ''
--      [5] how many active keys there may be  [6] how many ended ones are kept
--
-- Returns {"status": "ok", "now": ms, "key": …}; or lib/failure.lua with the status too_many_keys, expires_in_past,
--         taken (another key has the same id; make another)

--@include lib/clock
--@include lib/text
--@include lib/failure
--@include lib/api_key

local now = now_ms()
local id = string.sub(ARGV[1], 1, ID_LENGTH)
local expires_at = tonumber(ARGV[4])
if expires_at and expires_at <= now then
  return failure('expires_in_past', int(now))
end
if find_hash(KEYS[1], id) then
  return failure('taken', id)
end

local active = 0
local ended = {}
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  local other = parse_key(stored[i], stored[i + 1])
  local at = other and ended_at(other, now)
  if at then
    ended[#ended + 1] = { at, stored[i] }
  elseif other then
    active = active + 1
  end
end
if active >= tonumber(ARGV[5]) then
  return failure('too_many_keys', ARGV[5])
end

local key = {
  id = id, name = ARGV[2], project = ARGV[3] ~= '' and ARGV[3] or nil, createdAt = now, expiresAt = expires_at,
}
redis.call('HSET', KEYS[1], ARGV[1], key_json(key))
table.sort(ended, function(a, b) return a[1] < b[1] end)
for i = 1, #ended - tonumber(ARGV[6]) do
  redis.call('HDEL', KEYS[1], ended[i][2])
end
return '{"status":"ok","now":' .. int(now) .. ',"key":' .. key_json(key) .. '}'
