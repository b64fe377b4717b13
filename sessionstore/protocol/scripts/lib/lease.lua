-- The leases of an environment's views.
--
-- leases (sorted set): lease ids by expiry, in Redis ms. acks (sorted set): lease ids by the last revision applied.
-- views (hash): <id>, the view's description of itself; <id>:head, the revision its last join or renewal returned;
-- <id>:applied, the last revision that its view said it has applied; <id>:epoch, the epoch in which it was taken.
--
-- A lease's score in acks is the revision up to which no writer has to wait for it. It begins at the head that the join
-- returned: the view does not call itself fresh before it has applied that.

-- Drop the expired leases, and count them in the head. `index`, if given, is written later.
local function purge_leases(leases, acks, views, head_key, now, index)
  local gone = redis.call('ZRANGEBYSCORE', leases, '-inf', int(now))
  if #gone > 0 then
    -- A key of another type must fail here, before the first write.
    redis.call('ZCARD', acks)
    redis.call('HLEN', views)
    if index then
      redis.call('ZCARD', index)
    end
  end
  for _, id in ipairs(gone) do
    redis.call('ZREM', leases, id)
    redis.call('ZREM', acks, id)
    redis.call('HDEL', views, id, id .. ':head', id .. ':applied', id .. ':epoch')
  end
  if #gone > 0 then
    redis.call('HINCRBY', head_key, 'expiredLeases', #gone)
  end
  return #gone
end

-- How many leases live, and how many of them have not applied `rev`. Call purge_leases first.
local function count_leases(leases, acks, rev)
  local live = redis.call('ZCARD', leases)
  if live == 0 then
    return 0, 0
  end
  return live, live - redis.call('ZCOUNT', acks, int(rev), '+inf')
end
