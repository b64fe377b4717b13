-- How many sessions live in each of some environments of one project, for metrics: cheap, and exact where all writers
-- use one TTL. A session that was written with a shorter one counts until the longest has passed since it was last
-- seen.
--
-- KEYS[1] index  [2] head, and so on in pairs, one for each environment
--
-- Returns {"now": ms, "counts": [how many, …]} in the order of KEYS

--@include lib/clock

local now = now_ms()
local counts = {}
for i = 1, #KEYS, 2 do
  local ttl = whole(redis.call('HGET', KEYS[i + 1], 'maxTtl') or '0')
  if not ttl then
    error('SSCORRUPT ' .. KEYS[i + 1])
  end
  counts[#counts + 1] = int(redis.call('ZCOUNT', KEYS[i], '(' .. int(now - ttl), '+inf'))
end
return '{"now":' .. int(now) .. ',"counts":[' .. table.concat(counts, ',') .. ']}'
