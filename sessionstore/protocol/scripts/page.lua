-- One page of an environment's index, newest seen first. Members may have expired: read.lua leaves those out.
--
-- KEYS[1] index  [2] environments
-- ARGV[1] environment  [2] how many  [3] the score to start at (or '+inf')  [4] the last member of the page before, or
--         ''
--
-- Returns {"status": "ok", "members": [[session key, lastSeenAt], …]}; or lib/failure.lua with the status
--         unknown_environment. Fewer members than asked for mark the last page

--@include lib/environment
--@include lib/failure

if not environment_is_known(KEYS[2], ARGV[1]) then
  return failure('unknown_environment', ARGV[1])
end

-- Whether `a` comes before `b` byte by byte, as in a sorted set; Lua's own comparison goes by the server's locale.
local function comes_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end

local limit = tonumber(ARGV[2])
local members = {}
local offset = 0
while #members < limit do
  local batch = redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[3], '-inf', 'WITHSCORES', 'LIMIT', offset, limit + 1)
  for i = 1, #batch, 2 do
    -- Members of one score come in descending order, and those down to the last one have been listed.
    if (ARGV[4] == '' or batch[i + 1] ~= ARGV[3] or comes_before(batch[i], ARGV[4])) and #members < limit then
      members[#members + 1] = '[' .. cjson.encode(batch[i]) .. ',' .. batch[i + 1] .. ']'
    end
  end
  if #batch < 2 * (limit + 1) then
    break
  end
  offset = offset + limit + 1
end
return '{"status":"ok","members":[' .. table.concat(members, ',') .. ']}'
