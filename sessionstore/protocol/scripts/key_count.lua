-- Count a request of an API key in its window. The first request begins a window, which ends with the counter.
--
-- KEYS[1] counter
-- ARGV[1] length of a window, ms
--
-- Returns {"requests": so far, "left": ms until the window ends}

local requests = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  left = ARGV[1]
  redis.call('PEXPIRE', KEYS[1], left)
end
return '{"requests":' .. requests .. ',"left":' .. left .. '}'
