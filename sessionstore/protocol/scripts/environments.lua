-- The environments that a project has registered.
--
-- KEYS[1] environments
--
-- Returns {"now": ms, "environments": [slug, …]} in no order

--@include lib/clock

local slugs = redis.call('SMEMBERS', KEYS[1])
for i = 1, #slugs do
  slugs[i] = cjson.encode(slugs[i])
end
return '{"now":' .. int(now_ms()) .. ',"environments":[' .. table.concat(slugs, ',') .. ']}'
