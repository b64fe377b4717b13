-- API keys: one hash, SHA-256 of the key in hexadecimal → its record, JSON. A key's public id is how its hash begins.
-- lib/clock and lib/text come before this.

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

local function is_hash(field)
  return #field == 64 and string.find(field, '^[0-9a-f]+$') ~= nil
end

-- The id of the record in a field of the hash, also of a field that is no hash of a key.
local function id_of(hash)
  local id = string.match(hash, '^' .. string.rep('[0-9a-f]', ID_LENGTH))
  return id or string.gsub(string.sub(hash .. string.rep('?', ID_LENGTH), 1, ID_LENGTH / 2), '.', function(byte)
    return string.format('%02x', string.byte(byte))
  end)
end

-- The record of a key, or nil if it is corrupt. Each field must be there: without a project, a key would open all.
local function parse_key(hash, text)
  local decoded, key = pcall(cjson.decode, text)
  if not decoded or type(key) ~= 'table' then
    return nil
  end
  local id, project = key.id, key.project
  local sound = is_hash(hash) and id == id_of(hash) and type(key.name) == 'string' and is_utf8(key.name)
    and (project == cjson.null or type(project) == 'string' and is_slug(project))
    and type(key.createdAt) == 'number' and whole(key.createdAt) ~= nil
  for _, name in ipairs({ 'expiresAt', 'revokedAt', 'lastUsedAt' }) do
    local time = key[name]
    sound = sound and (time == cjson.null or type(time) == 'number' and whole(time) ~= nil)
  end
  if not sound then
    return nil
  end
  for name, value in pairs(key) do
    if value == cjson.null then
      key[name] = nil
    end
  end
  return key
end

-- The hash of the key with this id, or nil.
local function find_hash(keys, id)
  for _, hash in ipairs(redis.call('HKEYS', keys)) do
    if id_of(hash) == id then
      return hash
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
