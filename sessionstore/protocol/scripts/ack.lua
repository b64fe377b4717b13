-- Acknowledge what a lease's view has applied, between two renewals, because a writer waits for it. Does not extend the
-- lease.
--
-- KEYS[1] head  [2] leases  [3] acks  [4] views  [5] applied (channel)
-- ARGV[1] the lease's id  [2] the revision that the view has applied, and [3] its id
--
-- Returns   {"status": "ok", "now": ms, "rev": head, "id": its id, "epoch": text, "leaseMs": ms that the lease
--           still lasts}. Status expired: join again. Status forked: leave and resync
-- Publishes on `applied` if the revision that every live lease has applied rose

--@include lib/clock
--@include lib/lease
--@include lib/view

local lease_id, rev = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
-- No check of the server's run is needed here: without that check, no revision has been taken either.
local head = read_head(KEYS[1])
local floor = floor_of(head)
begin_without_memory()
head.expired = head.expired + purge_leases(KEYS[2], KEYS[3], KEYS[4], KEYS[1], now)

local expires = tonumber(redis.call('ZSCORE', KEYS[2], lease_id) or nil)
local epoch = redis.call('HGET', KEYS[4], lease_id .. ':epoch')
local status = 'ok'
if not expires or epoch ~= head.epoch then
  status = 'expired'
elseif is_forked(head, rev, ARGV[3]) then
  status = 'forked'
else
  acknowledge(lease_id, rev)
end
announce(KEYS[5], head, floor)
return lease_reply(status, now, head, status == 'ok' and expires - now or 0)
