-- The environment's head and its chain of revisions.
--
-- head (hash): rev, the revision counter; id, the random id of the write that made it; maxTtl, the longest TTL in ms
-- that a write has used; expired, how many leases have run out; settle, a Redis time until which no write may
-- count on the leases it sees (see open_head).

-- Read the head before a write. `known` is the highest revision that the writer has seen of this environment.
-- Where leases may have been lost with the head, writes wait for a whole lease: the head is lower than the writer
-- knows it was, or it is missing although somebody listens.
local function open_head(head_key, changes, now, lease, known)
  local value = redis.call('HMGET', head_key, 'rev', 'id', 'maxTtl', 'expired', 'settle')
  local head = {
    rev = tonumber(value[1] or '0'),
    id = value[2] or '',
    maxTtl = tonumber(value[3] or '0'),
    expired = tonumber(value[4] or '0'),
    settle = tonumber(value[5] or '0'),
  }
  if head.rev < known or (not value[1] and redis.call('PUBSUB', 'NUMSUB', changes)[2] > 0) then
    head.settle = now + lease
    head.forgotten = true
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

-- Drop the two oldest members of the index that are certainly gone. No session lives longer than the longest TTL
-- after it was last seen, so the scores alone tell, and no key has to be looked at that KEYS does not name.
local function prune_index(index, head, now)
  local gone = redis.call('ZRANGEBYSCORE', index, '-inf', int(now - head.maxTtl), 'LIMIT', 0, 2)
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
