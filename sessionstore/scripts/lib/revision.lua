-- The environment's head and its chain of revisions.
--
-- head (hash): rev, the revision counter; id, the random id of the write that made it; maxTtl, the longest TTL in ms
-- that a write has used; expired, how many leases have run out; settle, a Redis time until which no write may
-- count on the leases it sees (see open_head).

-- Count on no lease that is seen now: some may be lost.
local function forget_leases(head, now, lease)
  head.settle = now + lease
  head.forgotten = true
end

-- Read the head before a write. `known` is the highest revision that the writer has seen of this environment.
-- Where leases may have been lost with the head, writes wait for a whole lease: the head is lower than the writer
-- knows it was, or it is missing although somebody listens.
local function open_head(head_key, changes, now, lease, known)
  local value = redis.call('HMGET', head_key, 'rev', 'id', 'maxTtl', 'expired', 'settle')
  local head = {
    rev = whole(value[1] or '0'),
    id = value[2] or '',
    maxTtl = whole(value[3] or '0'),
    expired = whole(value[4] or '0'),
    settle = whole(value[5] or '0'),
  }
  if not (head.rev and head.maxTtl and head.expired and head.settle) then
    error('SSCORRUPT ' .. head_key)
  end
  if head.rev < known or (not value[1] and redis.call('PUBSUB', 'NUMSUB', changes)[2] > 0) then
    forget_leases(head, now, lease)
  end
  return head
end

-- Take the next revision for the write `id`. Returns the id that was at the head before.
local function advance_head(head_key, head, id, ttl)
  local prev = head.id
  head.rev = head.rev + 1
  head.id = id
  head.maxTtl = math.max(head.maxTtl, ttl)
  redis.call('HSET', head_key, 'rev', int(head.rev), 'id', id, 'maxTtl', int(head.maxTtl))
  if head.forgotten then
    redis.call('HSET', head_key, 'settle', int(head.settle))
  end
  return prev
end

-- The two oldest members of the index that are certainly gone. No session lives longer than the longest TTL after it was
-- last seen, so the scores alone tell, and no key has to be looked at that KEYS does not name. Call it before the first
-- write of a script, and drop them before members are added: a session that is set anew may be among them.
local function gone_members(index, head, now, ttl)
  return redis.call('ZRANGEBYSCORE', index, '-inf', int(now - math.max(head.maxTtl, ttl)), 'LIMIT', 0, 2)
end

local function drop_members(index, gone)
  if #gone > 0 then
    redis.call('ZREM', index, unpack(gone))
  end
end

-- Publish one change. `wait` says that a writer waits until every view has applied it.
local function publish_change(changes, kind, head, prev, now, wait, body)
  redis.call('PUBLISH', changes, '{"type":"' .. kind .. '","rev":' .. int(head.rev)
    .. ',"id":' .. cjson.encode(head.id) .. ',"prev":' .. cjson.encode(prev)
    .. ',"at":' .. int(now) .. ',"wait":' .. (wait == '1' and 'true' or 'false') .. ',' .. body .. '}')
end
