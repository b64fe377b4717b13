-- API keys: one hash, SHA-256 of the key in hexadecimal → its record, JSON. A key's public id is how its hash begins.

local ID_LENGTH = 12

local function key_json(key)
  local function ms(value)
    return value and int(value) or 'null'
  end
  return '{"id":' .. cjson.encode(key.id) .. ',"name":' .. cjson.encode(key.name)
    .. ',"project":' .. (key.project and cjson.encode(key.project) or 'null')
    .. ',"createdAt":' .. int(key.createdAt) .. ',"expiresAt":' .. ms(key.expiresAt)
    .. ',"revokedAt":' .. ms(key.revokedAt) .. ',"lastUsedAt":' .. ms(key.lastUsedAt) .. '}'
end

local function parse_key(text)
  local key = cjson.decode(text)
  for name, value in pairs(key) do
    if value == cjson.null then
      key[name] = nil
    end
  end
  return key
end

-- The hash and the record of the key with this id, or nil.
local function find_key(keys, id)
  for _, hash in ipairs(redis.call('HKEYS', keys)) do
    if string.sub(hash, 1, ID_LENGTH) == id then
      return hash, parse_key(redis.call('HGET', keys, hash))
    end
  end
end

-- When a key stopped working, or nil if it works.
local function ended_at(key, now)
  local ended = key.revokedAt
  if key.expiresAt and key.expiresAt <= now then
    ended = math.min(ended or key.expiresAt, key.expiresAt)
  end
  return ended
end
