-- Count the live sessions and views of some environments of one project, for metrics. It is cheap, and exact if all
-- writers use one TTL. A session with a shorter TTL counts until the longest has passed since it was last seen.
--
-- KEYS[1] index  [2] head  [3] leases, and so on, three for each environment
--
-- Returns {"now": ms, "sessions": [number, …], "views": [number, …]} in the order of KEYS

--@include lib/clock

local now = now_ms()
local sessions, views = {}, {}
for i = 1, #KEYS, 3 do
  local ttl = whole(redis.call('HGET', KEYS[i + 1], 'maxTtl') or '0')
  if not ttl then
    error('SSCORRUPT ' .. KEYS[i + 1])
  end
  sessions[#sessions + 1] = int(redis.call('ZCOUNT', KEYS[i], '(' .. int(now - ttl), '+inf'))
  views[#views + 1] = int(redis.call('ZCOUNT', KEYS[i + 2], '(' .. int(now), '+inf'))
end
return '{"now":' .. int(now) .. ',"sessions":[' .. table.concat(sessions, ',') .. '],"views":['
  .. table.concat(views, ',') .. ']}'
