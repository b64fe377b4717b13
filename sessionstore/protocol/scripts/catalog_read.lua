-- Read an environment's catalog.
--
-- KEYS[1] catalog  [2] head  [3] environments
--
-- Returns {"now": ms, "environments": the project's registered ones in no order, "rev": the revision of the catalog's last
--         change, 0 if there never was a catalog, "catalog": … or null}

--@include lib/clock

local catalog = redis.call('HGET', KEYS[1], 'json')
if not catalog and redis.call('EXISTS', KEYS[1]) == 1 then
  error('SSCORRUPT ' .. KEYS[1])
end
local slugs = redis.call('SMEMBERS', KEYS[3])
for i = 1, #slugs do
  slugs[i] = cjson.encode(slugs[i])
end
return '{"now":' .. int(now_ms()) .. ',"environments":[' .. table.concat(slugs, ',') .. ']'
  .. ',"rev":' .. (redis.call('HGET', KEYS[2], 'catalogRev') or '0')
  .. ',"catalog":' .. (catalog or 'null') .. '}'
