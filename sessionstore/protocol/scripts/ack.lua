-- Acknowledge what a lease's view has applied, between two renewals, because a writer waits for it. Does not extend the
-- lease.
--
-- KEYS[1] head  [2] leases  [3] acks  [4] views  [5] applied (channel)
-- ARGV[1] the lease's id  [2] the revision that the view has applied, and [3] its id  [4] the lease's epoch
--
-- Returns   {"status": "ok"}. Status expired: join again. Status forked: leave and resync
-- Publishes on `applied` if the revision that every live lease has applied rose

-- Nearly all acknowledgements end here: they are most of what a write costs, and the last one ends its wait. Nothing is
-- dropped: scripts that count leases do that first. Out of memory, ZADD returns an error.
do
  local rev, id, epoch, expired = unpack(redis.call('HMGET', KEYS[1], 'rev', 'id', 'epoch', 'expiredLeases'))
  if epoch == ARGV[4] and (ARGV[2] == rev and ARGV[3] == id or tonumber(ARGV[2]) < tonumber(rev or 0)) then
    local risen
    if redis.call('ZRANGE', KEYS[3], '0', '0')[1] == ARGV[1] then
      -- No other view is further behind. A key of another type fails here, before the first write.
      redis.call('HLEN', KEYS[4])
      local live = redis.call('ZCARD', KEYS[2])
      local lowest = redis.call('ZRANGE', KEYS[3], '0', '1', 'WITHSCORES')
      local floor = math.min(tonumber(ARGV[2]), tonumber(lowest[4] or ARGV[2]))
      risen = floor > tonumber(lowest[2]) and string.format('{"rev":%d,"live":%d,"expired":%d,"epoch":%s}', floor, live,
        expired or 0, cjson.encode(epoch))
    end
    if redis.pcall('ZADD', KEYS[3], 'XX', 'GT', 'CH', ARGV[2], ARGV[1]) == 1 then
      redis.call('HSET', KEYS[4], ARGV[1] .. ':applied', ARGV[2])
      if risen then
        redis.call('SPUBLISH', KEYS[5], risen)
      end
      return '{"status":"ok"}'
    end
  end
end

--@include lib/clock
--@include lib/primary
--@include lib/lease
--@include lib/view

local lease_id, rev = ARGV[1], tonumber(ARGV[2])
-- No check for a loss is needed here: without that check, no revision has been taken either.
local head = read_head(KEYS[1])
local floor = floor_of(head)
begin_without_memory()
purge_own_leases(head, now_ms())

local status = 'ok'
if head.epoch == '' or head.epoch ~= ARGV[4] or not redis.call('ZSCORE', KEYS[2], lease_id) then
  status = 'expired'
elseif is_forked(head, rev, ARGV[3]) then
  status = 'forked'
else
  acknowledge(lease_id, rev)
end
announce(KEYS[5], head, floor)
return '{"status":"' .. status .. '"}'
