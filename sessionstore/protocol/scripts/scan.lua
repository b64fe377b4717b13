-- One page of the index, in no order. Every member that is in the index from the first page to the last is returned at
-- least once, even if it moves.
--
-- KEYS[1] index  [2] environments
-- ARGV[1] cursor, '0' to begin  [2] about how many to look at  [3] how they begin, byte by byte; '' for every member
--     [4] environment
--
-- Returns {"cursor": text, '0' at the end, "members": [session key, …], "known": whether the environment may be used}

--@include lib/clock
--@include lib/text
--@include lib/environment

local page = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local prefix = ARGV[3]
local members = {}
for i = 1, #page[2], 2 do
  local member = page[2][i]
  if string.sub(member, 1, #prefix) == prefix and is_utf8(member) then
    members[#members + 1] = cjson.encode(member)
  end
end
return '{"cursor":"' .. page[1] .. '","members":[' .. table.concat(members, ',')
  .. '],"known":' .. tostring(environment_is_known(KEYS[2], ARGV[4])) .. '}'
