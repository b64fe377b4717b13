-- Give a lease up: no writer waits for it any more. Its view must have stopped calling itself fresh before. A lease
-- that has expired is no error.
--
-- KEYS[1] head  [2] leases  [3] acks  [4] views  [5] applied (channel)
-- ARGV[1] the lease's id
--
-- Returns   {"status": "ok", "now": ms, "rev": head, "id": its id, "epoch": text, "leaseMs": 0}
-- Publishes on `applied` if the lease delayed writers

--@include lib/clock
--@include lib/primary
--@include lib/lease
--@include lib/view

local lease_id = ARGV[1]
local now = now_ms()
local head = read_head(KEYS[1])
local floor = floor_of(head)
begin_without_memory()
redis.call('ZREM', KEYS[2], lease_id)
redis.call('ZREM', KEYS[3], lease_id)
redis.call('HDEL', KEYS[4], lease_id, lease_id .. ':head', lease_id .. ':applied', lease_id .. ':epoch')
purge_own_leases(head, now)
announce(KEYS[5], head, floor)
return lease_reply('ok', now, head, 0)
