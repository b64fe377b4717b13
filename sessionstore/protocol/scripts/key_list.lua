-- Every API key's record, including revoked and expired ones.
--
-- KEYS[1] api keys
-- ARGV[1] '1' to check each record and leave the corrupt ones out, at a cost; '' to copy them as they are
--
-- Returns {"now": ms, "keys": {SHA-256 of the key: its record, …}, "corrupt": [ids of corrupt records]}

--@include lib/clock
--@include lib/text
--@include lib/api_key

local stored = redis.call('HGETALL', KEYS[1])
local keys = {}
local corrupt = {}
for i = 1, #stored, 2 do
  local hash, record = stored[i], stored[i + 1]
  if not is_hash(hash) then
    record = nil
  elseif ARGV[1] == '1' then
    local key = parse_key(hash, record)
    record = key and key_json(key)
  end
  if record then
    keys[#keys + 1] = '"' .. hash .. '":' .. record
  else
    corrupt[#corrupt + 1] = '"' .. id_of(hash) .. '"'
  end
end
return '{"now":' .. int(now_ms()) .. ',"keys":{' .. table.concat(keys, ',')
  .. '},"corrupt":[' .. table.concat(corrupt, ',') .. ']}'
