-- Count the live sessions of environments of one project, for metrics. It is cheap, and exact if all writers use one
-- TTL. A session with a shorter TTL counts until the longest TTL has passed since it was last seen.
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
