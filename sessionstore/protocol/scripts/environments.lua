-- The environments that a project has registered.
--
-- KEYS[1] environments
--
-- Returns {"now": ms, "environments": [slug, …]} in no order

--@include lib/clock
--@include lib/text

local slugs = {}
for _, slug in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if is_slug(slug) then
    slugs[#slugs + 1] = '"' .. slug .. '"'
  end
end
return '{"now":' .. int(now_ms()) .. ',"environments":[' .. table.concat(slugs, ',') .. ']}'
