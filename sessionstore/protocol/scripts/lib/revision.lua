-- The environment's head and its chain of revisions.
--
-- The head is a hash with these fields:
--   rev            revision counter; each change of the environment adds one
--   id             random id of the write that made rev
--   layout         layout of the environment's data, see lib/layout.lua
--   maxTtl         longest TTL in ms that a write has used
--   expiredLeases  number of leases that have expired
--   countableAt    Redis time in ms; before it, no write may count the leases, since some may be lost (see open_head)
--   lostRev        highest revision a caller has seen that this head no longer contains
--   epoch          id of the primary's reign, then the id of the first lease taken. Leases and changes of another
--                  epoch may belong to another chain than the head's.
--   replid         id of the replication of the epoch's primary: while it stays, so does the epoch, see lib/primary.lua
--   keptUntil      Redis time in ms at which Redis removes the head and the index, unless a revision or a lease comes first.
--                  Revisions then begin again at 1. An environment that ever had a catalog is kept forever.
--   counted        '1' if the project has had a count of its sessions, see lib/usage.lua

-- Make writers wait for one lease: some leases may be lost.
local function forget_leases(head, now, lease)
  head.countableAt = now + lease
  head.is_unsaved = true
end

-- Read the head before a write. `known` is the highest revision that the caller has seen of this environment; `own`,
-- if given, is the number of the caller's own subscriptions.
-- If leases may have been lost, writes wait for a whole lease. There are three signs:
--   - the head is lower than the revision that the caller has seen;
--   - the head is missing although the channel has subscribers;
--   - the leases were taken under another primary: the last leases and acknowledgements may be lost, and its clock may
--     differ.
-- The same loss counts once: lost leases have expired one lease after it was first detected. Callers that notice it
-- later, such as a view that was disconnected for long, must not make writers wait again. A second loss in the meantime
-- shows by a missing head or another primary.
local function open_head(head_key, changes, now, lease, known, own)
  -- Scripts publish last. If this user may not publish, fail before the first write.
  if redis.acl_check_cmd and not redis.acl_check_cmd('SPUBLISH', changes, '') then
    error(redis.error_reply('NOPERM this user may not publish on the channels of the prefix'))
  end
  local value = redis.call('HMGET', head_key, 'rev', 'id', 'maxTtl', 'expiredLeases', 'countableAt', 'epoch', 'lostRev',
    'layout', 'keptUntil', 'counted', 'replid')
  check_layout(value[1], value[8])
  local head = {
    rev = whole_or_0(value[1]),
    id = value[2] or '',
    maxTtl = whole_or_0(value[3]),
    expired = whole_or_0(value[4]),
    countableAt = whole_or_0(value[5]),
    epoch = value[6] or '',
    lostRev = whole_or_0(value[7]),
    missing = not value[1],
    keptUntil = whole_or_0(value[9]),
    counted = value[10],
    replid = value[11],
  }
  if not (head.rev and head.maxTtl and head.expired and head.countableAt and head.lostRev and head.keptUntil) then
    error('SSCORRUPT ' .. head_key)
  end
  if head.countableAt > now + lease then
    -- The server's clock was set back. No lost lease lasts longer than a lease from now on.
    forget_leases(head, now, lease)
  end
  if head.rev < known and head.lostRev < known then
    forget_leases(head, now, head.countableAt > now and head.countableAt - now or lease)
    head.lostRev = known
  elseif head.missing and redis.call('PUBSUB', 'SHARDNUMSUB', changes)[2] > (own or 0) then
    forget_leases(head, now, lease)
  end
  if head.epoch ~= '' then
    local here, replid = epoch_here(head.epoch, head.replid)
    if here ~= head.epoch then
      forget_leases(head, now, lease)
    end
    head.is_unsaved = head.is_unsaved or replid ~= head.replid
    head.epoch, head.replid = here, replid
  end
  return head
end

-- Keep the head until then, and the index, if given. No session outlives the longest TTL after the last revision, so both
-- outlive all sessions. A lease keeps only the head: an index that lives had a revision later.
local function keep_head(head_key, head, time, index)
  head.keptUntil = time
  if redis.call('HGET', head_key, 'catalogRev') then
    -- Only a release that let no head expire leaves such a head without this time.
    head.keptUntil = FOREVER
  else
    redis.call('PEXPIREAT', head_key, int(time))
    if index then
      redis.call('PEXPIREAT', index, int(time))
    end
  end
  redis.call('HSET', head_key, 'keptUntil', int(head.keptUntil))
end

-- Persist what open_head detected, so that the same loss counts once, and the same primary is known.
local function keep_head_state(head_key, head, now)
  redis.call('HSET', head_key, 'rev', int(head.rev), 'countableAt', int(head.countableAt), 'layout', LAYOUT)
  if head.lostRev > 0 then
    redis.call('HSET', head_key, 'lostRev', int(head.lostRev))
  end
  if head.epoch ~= '' then
    redis.call('HSET', head_key, 'epoch', head.epoch)
  end
  if head.replid then
    redis.call('HSET', head_key, 'replid', head.replid)
  end
  if head.keptUntil < now + LEASED_KEEP_MS then
    keep_head(head_key, head, now + 2 * LEASED_KEEP_MS)
  end
end

-- Take the next revision for the write `id`. Returns the id that was at the head before.
local function advance_head(head_key, index, head, id, now, ttl, keep_step)
  local prev = head.id
  head.rev = head.rev + 1
  head.id = id
  redis.call('HSET', head_key, 'rev', int(head.rev), 'id', id)
  if head.missing then
    redis.call('HSET', head_key, 'layout', LAYOUT)
  end
  if head.is_counted and not head.counted then
    redis.call('HSET', head_key, 'counted', '1')
  end
  if ttl > head.maxTtl then
    head.maxTtl = ttl
    redis.call('HSET', head_key, 'maxTtl', int(ttl))
  end
  local kept_until = now + head.maxTtl + KEEP_MS
  if head.keptUntil < kept_until - keep_step then
    keep_head(head_key, head, kept_until, index)
  end
  if head.is_unsaved then
    keep_head_state(head_key, head, now)
  end
  return prev
end

-- The two oldest members of the index that have certainly expired, for scripts that add a member or run often. No
-- session outlives the longest TTL after it was last seen, so the scores suffice, and no key outside KEYS is read.
-- Call this before a script's first write, and drop the members before adding any: a new session may be among them.
local function gone_members(index, head, now, ttl)
  return redis.call('ZRANGEBYSCORE', index, '-inf', int(now - math.max(head.maxTtl, ttl)), 'LIMIT', '0', '2')
end

local function drop_members(index, gone)
  if #gone > 0 then
    redis.call('ZREM', index, unpack(gone))
  end
end

-- Publish one change. `wait` says that a writer waits until every view has applied it. The epoch is left
-- out before the first lease.
local function publish_change(changes, kind, head, prev, now, wait, body)
  local epoch = head.epoch ~= '' and ',"epoch":' .. cjson.encode(head.epoch) or ''
  redis.call('SPUBLISH', changes, string.format('{"type":"%s","rev":%d,"id":%s,"prev":%s,"at":%d,"wait":%s%s,%s}', kind,
    head.rev, cjson.encode(head.id), cjson.encode(prev), now, tostring(wait == '1'), epoch, body))
end
