-- One page of the index for a snapshot. Every member that is in the index from the first page to the last is
-- returned at least once.
--
-- KEYS[1] index
-- ARGV[1] cursor, '0' to begin  [2] about how many
--
-- Returns {"cursor": text, '0' at the end, "members": [session key, …]}

local page = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local members = {}
for i = 1, #page[2], 2 do
  members[#members + 1] = cjson.encode(page[2][i])
end
return '{"cursor":"' .. page[1] .. '","members":[' .. table.concat(members, ',') .. ']}'
