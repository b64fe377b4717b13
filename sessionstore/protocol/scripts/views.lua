-- The views that hold a lease, for people.
--
-- KEYS[1] head  [2] leases  [3] views
--
-- Returns {"now": ms, "rev": head, "epoch": the leases' epoch, "views": [{"lease": id, "info": the view's description
--         of itself, JSON as text, "applied": the last revision that it said it has applied, "leaseLeftMs": ms until
--         its lease runs out}, …]}, ordered by expiry, soonest first

--@include lib/clock
--@include lib/text

local now = now_ms()
local head = redis.call('HMGET', KEYS[1], 'rev', 'epoch')
local live = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. int(now), '+inf', 'WITHSCORES')
local views = {}
for i = 1, #live, 2 do
  local id, left = live[i], math.min(tonumber(live[i + 1]) - now, 9007199254740992)
  if is_utf8(id) then
    local value = redis.call('HMGET', KEYS[3], id, id .. ':applied')
    local info = value[1] and is_utf8(value[1]) and value[1] or '{}'
    views[#views + 1] = '{"lease":' .. cjson.encode(id) .. ',"info":' .. cjson.encode(info)
      .. ',"applied":' .. int(whole(value[2]) or 0) .. ',"leaseLeftMs":' .. int(left) .. '}'
  end
end
return '{"now":' .. int(now) .. ',"rev":' .. (head[1] or '0') .. ',"epoch":' .. cjson.encode(head[2] or '')
  .. ',"views":[' .. table.concat(views, ',') .. ']}'
