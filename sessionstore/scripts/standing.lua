-- Which leases have not applied a revision yet, for a writer that waits.
--
-- KEYS[1] head  [2] leases  [3] acks  [4] views
-- ARGV[1] the revision that the writer waits for
--
-- Returns {"now": ms, "rev": head, "live": leases that live, "pending": those of them that have not applied it,
--          "expired": leases that ever ran out, "left": ms until the last lease runs out, "settle": ms during which
--          live leases may be missing from the count}

--@include lib/clock
--@include lib/lease

local now = now_ms()
purge_leases(KEYS[2], KEYS[3], KEYS[4], KEYS[1], now)
local live, pending = standing(KEYS[2], KEYS[3], tonumber(ARGV[1]))
local value = redis.call('HMGET', KEYS[1], 'rev', 'expired', 'settle')
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return '{"now":' .. int(now) .. ',"rev":' .. (value[1] or '0') .. ',"live":' .. int(live)
  .. ',"pending":' .. int(pending) .. ',"expired":' .. (value[2] or '0')
  .. ',"left":' .. int(last[2] and tonumber(last[2]) - now or 0)
  .. ',"settle":' .. int(math.max(0, tonumber(value[3] or '0') - now)) .. '}'
