-- Extend a lease, and acknowledge what its view has applied. The view must have applied the head that its last join or
-- renewal returned. So a view is refused if its subscription is dead while its commands still work.
--
-- KEYS[1] head  [2] leases  [3] acks  [4] views  [5] changes (channel)  [6] applied (channel)
-- ARGV[1] the lease's id  [2] lease, ms  [3] the revision that the view has applied, and [4] its id
--     [5] the lease's epoch if an answer has said that this position was acknowledged, else ''
--
-- Returns   {"status": …, "now": ms, "rev": head, "id": its id, "epoch": text, "leaseMs": ms that the lease lasts, 0
--           if it was not extended}. Status same: as ok, without rev, id and epoch, which are those of the call. Status
--           expired: the lease expired or belongs to another epoch; join again. Status refused or forked: the view
--           missed a change; leave and resync
-- Publishes on `applied` if the revision that every live lease has applied rose

--@include lib/primary

-- Nearly all renewals of an idle view end here: it has acknowledged the head already. It says so itself, since a look at
-- the hash of all views would take longer than anything else here. A lease that has run out, and is still there, was
-- counted by all writes: scripts that count leases drop those first. A loss of history that is not detected yet matters
-- to the next write only, which looks for it. An unknown reign ('-') never ends. Out of memory, ZADD returns an error.
if ARGV[5] ~= '' then
  local rev, id, epoch, kept, replid = unpack(redis.call('HMGET', KEYS[1], 'rev', 'id', 'epoch', 'keptUntil', 'replid'))
  if rev == ARGV[3] and (id or '') == ARGV[4] and epoch == ARGV[5]
      and (string.sub(epoch, 1, 2) == '-:' or replicates_as(replid)) then
    local time = redis.call('TIME')
    local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    if (tonumber(kept or nil) or 0) > now + 86400000
      and redis.pcall('ZADD', KEYS[2], 'XX', 'CH', string.format('%d', now + ARGV[2]), ARGV[1]) == 1 then
      return string.format('{"status":"same","now":%d,"leaseMs":%d}', now, ARGV[2])
    end
  end
end

--@include lib/clock
--@include lib/layout
--@include lib/periods
--@include lib/revision
--@include lib/lease
--@include lib/view

local lease_id, lease, rev = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
local head = open_head(KEYS[1], KEYS[5], now, lease, rev)
local floor = floor_of(head)
begin_without_memory()
head.expired = head.expired + purge_leases(KEYS[2], KEYS[3], KEYS[4], KEYS[1], now)
if head.is_unsaved or not head.missing and head.keptUntil < now + LEASED_KEEP_MS then
  keep_head_state(KEYS[1], head, now)
end

local expires = tonumber(redis.call('ZSCORE', KEYS[2], lease_id) or nil)
local held = redis.call('HMGET', KEYS[4], lease_id .. ':head', lease_id .. ':epoch')
local status, lasts = 'ok', 0
if not expires or not held[1] or held[2] ~= head.epoch then
  status = 'expired'
elseif is_forked(head, rev, ARGV[4]) then
  status = 'forked'
elseif rev < tonumber(held[1]) then
  status = 'refused'
else
  -- A writer that commits now waits for a lease and a third, and a twentieth for a renewal that is a little late. A
  -- view that is behind and renews later than that is not given the time it was late.
  local due = expires - lease + math.floor(lease / 3 + lease / 20)
  lasts = lease - (rev < head.rev and math.max(0, now - due) or 0)
  redis.call('ZADD', KEYS[2], int(now + lasts), lease_id)
  redis.call('HSET', KEYS[4], lease_id .. ':head', int(head.rev))
  acknowledge(lease_id, rev)
end
announce(KEYS[6], head, floor)
return lease_reply(status, now, head, lasts)
