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
--   epoch          id of the server's run, then the id of the first lease taken. Leases and changes of another epoch
--                  may belong to another chain than the head's.

-- Count on no lease that is seen now: some may be lost.
local function forget_leases(head, now, lease)
  head.countableAt = now + lease
  head.forgotten = true
end

-- The id of this run of the server: another one after a restart, and after a replica took over. '-' where it is not
-- told.
local function server_run()
  local info = redis.pcall('INFO', 'server')
  -- Plain, since a pattern would be tried at each of hundreds of characters.
  local _, before = string.find(type(info) == 'string' and info or '', '\nrun_id:', 1, true)
  return before and string.sub(info, before + 1, before + 12) or '-'
end

-- Read the head before a write. `known` is the highest revision that the caller has seen of this environment; `own`,
-- where given, how many subscriptions the caller has itself.
-- Where leases may have been lost, writes wait for a whole lease: the head is lower than the caller knows it was; it is
-- missing although somebody listens; or leases were taken from another run of the server, so that the last of them, and
-- the last acknowledgements, may not have reached this one's data. Without leases nobody has to ask for the run.
-- The same loss counts once: leases that were lost have run out a lease after it was first found, and callers that come
-- to know of it one after another, a view that was cut off for long among them, must not make writers wait anew. One
-- more loss in the meantime shows by itself, by a head that is missing or by the server's run.
local function open_head(head_key, changes, now, lease, known, own)
  -- To publish is the last thing that a script does. It has to be allowed, or nothing may be written.
  if redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', changes, '') then
    error(redis.error_reply('NOPERM this user may not publish on the channels of the prefix'))
  end
  local value = redis.call('HMGET', head_key, 'rev', 'id', 'maxTtl', 'expiredLeases', 'countableAt', 'epoch', 'lostRev',
    'layout')
  check_layout(value[1], value[8])
  local head = {
    rev = whole(value[1] or '0'),
    id = value[2] or '',
    maxTtl = whole(value[3] or '0'),
    expired = whole(value[4] or '0'),
    countableAt = whole(value[5] or '0'),
    epoch = value[6] or '',
    lostRev = whole(value[7] or '0'),
    missing = not value[1],
  }
  if not (head.rev and head.maxTtl and head.expired and head.countableAt and head.lostRev) then
    error('SSCORRUPT ' .. head_key)
  end
  if head.rev < known and head.lostRev < known then
    forget_leases(head, now, head.countableAt > now and head.countableAt - now or lease)
    head.lostRev = known
  elseif head.missing and redis.call('PUBSUB', 'NUMSUB', changes)[2] > (own or 0) then
    forget_leases(head, now, lease)
  end
  if head.epoch ~= '' then
    local known_run, first = string.match(head.epoch, '^([^:]*)(.*)$')
    local run = server_run()
    if run ~= known_run and run ~= '-' and known_run ~= '-' then
      head.epoch = run .. first
      forget_leases(head, now, lease)
    end
  end
  return head
end

-- Keep what open_head has found out, so that it is found out once.
local function keep_head_state(head_key, head)
  redis.call('HSET', head_key, 'rev', int(head.rev), 'countableAt', int(head.countableAt), 'layout', LAYOUT)
  if head.lostRev > 0 then
    redis.call('HSET', head_key, 'lostRev', int(head.lostRev))
  end
  if head.epoch ~= '' then
    redis.call('HSET', head_key, 'epoch', head.epoch)
  end
end

-- Take the next revision for the write `id`. Returns the id that was at the head before.
local function advance_head(head_key, head, id, ttl)
  local prev = head.id
  head.rev = head.rev + 1
  head.id = id
  redis.call('HSET', head_key, 'rev', int(head.rev), 'id', id)
  if head.missing then
    redis.call('HSET', head_key, 'layout', LAYOUT)
  end
  if ttl > head.maxTtl then
    head.maxTtl = ttl
    redis.call('HSET', head_key, 'maxTtl', int(ttl))
  end
  if head.forgotten then
    keep_head_state(head_key, head)
  end
  return prev
end

-- The two oldest members of the index that are certainly gone, for a script that adds one, or that comes often. No
-- session lives longer than the longest TTL after it was last seen, so the scores alone tell, and no key has to be
-- looked at that
-- KEYS does not name. Call it before the first write of a script, and drop them before members are added: a session
-- that is set anew may be among them.
local function gone_members(index, head, now, ttl)
  return redis.call('ZRANGEBYSCORE', index, '-inf', int(now - math.max(head.maxTtl, ttl)), 'LIMIT', 0, 2)
end

local function drop_members(index, gone)
  if #gone > 0 then
    redis.call('ZREM', index, unpack(gone))
  end
end

-- Publish one change. `wait` says that a writer waits until every view has applied it. The epoch is there once there is
-- one.
local function publish_change(changes, kind, head, prev, now, wait, body)
  redis.call('PUBLISH', changes, '{"type":"' .. kind .. '","rev":' .. int(head.rev)
    .. ',"id":' .. cjson.encode(head.id) .. ',"prev":' .. cjson.encode(prev)
    .. ',"at":' .. int(now) .. ',"wait":' .. (wait == '1' and 'true' or 'false')
    .. (head.epoch ~= '' and ',"epoch":' .. cjson.encode(head.epoch) or '') .. ',' .. body .. '}')
end
