-- The views that hold a lease, for people.
--
-- KEYS[1] head  [2] leases  [3] views
--
-- Returns {"now": ms, "rev": head, "epoch": the leases' epoch, "views": [{"lease": id, "info": the view's description
--         of itself, JSON as text, "applied": the last revision that it said it has applied, "leaseLeftMs": ms until
--         its lease runs out}, …]}, ordered by expiry, soonest first

--@include lib/clock

local now = now_ms()
local head = redis.call('HMGET', KEYS[1], 'rev', 'epoch')
local live = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. int(now), '+inf', 'WITHSCORES')
local views = {}
for i = 1, #live, 2 do
  local id = live[i]
  local value = redis.call('HMGET', KEYS[3], id, id .. ':applied')
  views[#views + 1] = '{"lease":' .. cjson.encode(id) .. ',"info":' .. cjson.encode(value[1] or '{}')
    .. ',"applied":' .. (value[2] or '0') .. ',"leaseLeftMs":' .. int(tonumber(live[i + 1]) - now) .. '}'
end
return '{"now":' .. int(now) .. ',"rev":' .. (head[1] or '0') .. ',"epoch":' .. cjson.encode(head[2] or '')
  .. ',"views":[' .. table.concat(views, ',') .. ']}'
