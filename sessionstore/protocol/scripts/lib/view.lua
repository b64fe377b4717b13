-- Shared by the scripts that a view calls for its lease. KEYS[1..4] are head, leases, acks and views.

-- The head, unchecked. Joining and renewing check it, with open_head.
local function read_head(head_key)
  local value = redis.call('HMGET', head_key, 'rev', 'id', 'expiredLeases', 'epoch', 'replid')
  return {
    rev = whole(value[1] or '0'),
    id = value[2] or '',
    expired = whole(value[3] or '0'),
    epoch = value[4] or '',
    replid = value[5],
  }
end

-- Call this before all other writes. A script whose first write only removes may finish on a Redis that is out of
-- memory, so views can stay fresh there. Keys of a wrong type fail here.
local function begin_without_memory()
  redis.call('HLEN', KEYS[4])
  redis.call('ZREM', KEYS[2], '')
end

-- Whether a view that has applied `rev`, made by the write `id`, can't have reached it by this head's chain.
local function is_forked(head, rev, id)
  return rev > head.rev or (rev == head.rev and id ~= head.id)
end

-- The revision that every live lease has applied; without a lease, the head's.
local function floor_of(head)
  local lowest = redis.call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')
  return lowest[2] and tonumber(lowest[2]) or head.rev
end

-- Drop the expired leases, unless their times are another primary's.
local function purge_own_leases(head, now)
  if redis.call('ZCOUNT', KEYS[2], '-inf', int(now)) > 0 and epoch_here(head.epoch, head.replid) == head.epoch then
    head.expired = head.expired + purge_leases(KEYS[2], KEYS[3], KEYS[4], KEYS[1], now)
  end
end

-- Wake the waiting writers if the floor has risen above `before`.
local function announce(channel, head, before)
  local floor = floor_of(head)
  if floor > before then
    redis.call('SPUBLISH', channel, '{"rev":' .. int(floor) .. ',"live":' .. int(redis.call('ZCARD', KEYS[2]))
      .. ',"expired":' .. int(head.expired) .. ',"epoch":' .. cjson.encode(head.epoch) .. '}')
  end
end

-- Record that the lease's view has applied `rev`. Never lowers what it has acknowledged: a call may run late.
local function acknowledge(lease_id, rev)
  redis.call('ZADD', KEYS[3], 'GT', int(rev), lease_id)
  if rev > (whole(redis.call('HGET', KEYS[4], lease_id .. ':applied')) or 0) then
    redis.call('HSET', KEYS[4], lease_id .. ':applied', int(rev))
  end
end

-- The answer: the status, the head, its epoch, and the ms that the lease still lasts.
local function lease_reply(status, now, head, lasts)
  return '{"status":"' .. status .. '","now":' .. int(now) .. ',"rev":' .. int(head.rev)
    .. ',"id":' .. cjson.encode(head.id) .. ',"epoch":' .. cjson.encode(head.epoch)
    .. ',"leaseMs":' .. int(lasts) .. '}'
end
