-- The leases that have not applied a revision yet, for a writer that waits.
--
-- KEYS[1] head  [2] leases  [3] acks  [4] views  [5] changes (channel)
-- ARGV[1] the revision that the writer waits for  [2] lease, ms
--
-- Returns {"now": ms, "rev": head, "live": live leases, "pending": those of them that have not applied it,
--          "expired": leases that ever expired, "leaseLeftMs": ms until the last pending lease expires,
--          "countableInMs": ms during which live leases may be missing from the count, "epoch": the leases' epoch}

--@include lib/clock
--@include lib/layout
--@include lib/primary
--@include lib/periods
--@include lib/revision
--@include lib/lease

local now = now_ms()
local rev = tonumber(ARGV[1])
local head = open_head(KEYS[1], KEYS[5], now, tonumber(ARGV[2]), rev)
if head.is_unsaved then
  keep_head_state(KEYS[1], head, now)
end
head.expired = head.expired + purge_leases(KEYS[2], KEYS[3], KEYS[4], KEYS[1], now)
local live, pending = count_leases(KEYS[2], KEYS[3], rev)
local left = 0
if pending > 0 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', '(' .. int(rev))) do
    left = math.max(left, math.min(tonumber(redis.call('ZSCORE', KEYS[2], id) or now) - now, 9007199254740992))
  end
end
return '{"now":' .. int(now) .. ',"rev":' .. int(head.rev) .. ',"live":' .. int(live) .. ',"pending":' .. int(pending)
  .. ',"expired":' .. int(head.expired) .. ',"leaseLeftMs":' .. int(left)
  .. ',"countableInMs":' .. int(math.max(0, head.countableAt - now)) .. ',"epoch":' .. cjson.encode(head.epoch) .. '}'
