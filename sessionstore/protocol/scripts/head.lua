-- An environment's newest revision.
--
-- KEYS[1] head
--
-- Returns {"now": ms, "rev": 0 if nothing was ever written, "id": ''}

--@include lib/clock
--@include lib/layout

local value = redis.call('HMGET', KEYS[1], 'rev', 'id', 'layout')
check_layout(value[1], value[3])
return '{"now":' .. int(now_ms()) .. ',"rev":' .. (value[1] or '0') .. ',"id":' .. cjson.encode(value[2] or '') .. '}'
