-- One page of an environment's index, newest seen first. Members may have expired: read.lua leaves those out.
--
-- KEYS[1] index  [2] environments
-- ARGV[1] environment  [2] how many members to return, at most, and [3] to look at
--     [4] the score and [5] the member after which the page begins; '' and '' for the first page
--     [6] how the members begin, byte by byte; '' for every member
--
-- Returns {"status": "ok", "members": [[session key, lastSeenAt], …], "next": the last member that was looked at, in the
--         same form, or null at the end of the index}; or lib/failure.lua with the status unknown_environment

--@include lib/clock
--@include lib/text
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

-- Find the rank of the first member after the place by halving: the member there may have moved or gone.
local first = 0
if ARGV[4] ~= '' then
  local place, behind = tonumber(ARGV[4]), redis.call('ZCARD', KEYS[1])
  while first < behind do
    local middle = math.floor((first + behind) / 2)
    local entry = redis.call('ZREVRANGE', KEYS[1], middle, middle, 'WITHSCORES')
    local score = tonumber(entry[2])
    -- Members of one score come in descending order.
    if score < place or score == place and comes_before(entry[1], ARGV[5]) then
      behind = middle
    else
      first = middle + 1
    end
  end
end

local limit, look, prefix = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[6]
local members = {}
local next_page, ends
-- An entry that no session can have is passed over, and no place to go on from. So it may take another look.
repeat
  -- One more entry than it looks at tells whether the index ends here.
  local entries = redis.call('ZREVRANGE', KEYS[1], first, first + look, 'WITHSCORES')
  local looked_at = 0
  while #members < limit and looked_at < look and 2 * looked_at < #entries do
    looked_at = looked_at + 1
    local member, score = entries[2 * looked_at - 1], entries[2 * looked_at]
    if whole(score) and is_utf8(member) then
      next_page = '[' .. cjson.encode(member) .. ',' .. score .. ']'
      if string.sub(member, 1, #prefix) == prefix then
        members[#members + 1] = next_page
      end
    end
  end
  first = first + looked_at
  ends = 2 * looked_at >= #entries
until ends or next_page
return '{"status":"ok","members":[' .. table.concat(members, ',')
  .. '],"next":' .. (not ends and next_page or 'null') .. '}'
