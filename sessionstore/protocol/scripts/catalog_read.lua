-- Read an environment's catalog.
--
-- KEYS[1] catalog  [2] head  [3] environments
-- ARGV[1] environment
--
-- Returns {"now": ms, "known": whether the environment may be used, "rev": the revision of the catalog's last change, 0
--         if there never was a catalog, "catalog": … or null}

--@include lib/clock
--@include lib/environment

local catalog = redis.call('HGET', KEYS[1], 'json')
if not catalog and redis.call('EXISTS', KEYS[1]) == 1 then
  error('SSCORRUPT ' .. KEYS[1])
end
return '{"now":' .. int(now_ms()) .. ',"known":' .. tostring(environment_is_known(KEYS[3], ARGV[1]))
  .. ',"rev":' .. (redis.call('HGET', KEYS[2], 'catalogRev') or '0')
  .. ',"catalog":' .. (catalog or 'null') .. '}'
