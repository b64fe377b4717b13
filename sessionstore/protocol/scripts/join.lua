-- Take a lease: from now on writers wait for this view. It may call itself fresh once it has applied the head that this
-- returns.
--
-- KEYS[1] head  [2] leases  [3] acks  [4] views  [5] changes (channel)  [6] applied (channel)
-- ARGV[1] the lease's id, never used before  [2] lease, ms  [3] the view's description of itself, JSON
--     [4] the revision that it has applied, and [5] its id
--
-- Returns   {"status": "ok", "now": ms, "rev": head, "id": its id, "epoch": text, "leaseMs": ms that the lease lasts}.
--           Status forked, without a lease: the view's revision is not on this head's chain
-- Publishes on `applied` if expired leases delayed writers

--@include lib/clock
--@include lib/layout
--@include lib/primary
--@include lib/periods
--@include lib/revision
--@include lib/lease
--@include lib/view

local lease_id, lease, rev = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local now = now_ms()
-- The view has a subscription itself, so one subscriber does not indicate leases that were lost with the head.
local head = open_head(KEYS[1], KEYS[5], now, lease, rev, 1)
local floor = floor_of(head)
begin_without_memory()
head.expired = head.expired + purge_leases(KEYS[2], KEYS[3], KEYS[4], KEYS[1], now)
if head.epoch == '' then
  local here, replid = reign()
  head.epoch, head.replid = here .. ':' .. lease_id, replid
end
keep_head_state(KEYS[1], head, now)

local status = is_forked(head, rev, ARGV[5]) and 'forked' or 'ok'
if status == 'ok' then
  redis.call('ZADD', KEYS[2], int(now + lease), lease_id)
  redis.call('ZADD', KEYS[3], int(head.rev), lease_id)
  redis.call('HSET', KEYS[4], lease_id, ARGV[3], lease_id .. ':head', int(head.rev), lease_id .. ':applied', int(rev),
    lease_id .. ':epoch', head.epoch)
end
announce(KEYS[6], head, floor)
return lease_reply(status, now, head, status == 'ok' and lease or 0)
