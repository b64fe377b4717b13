-- Whether leases were taken under this primary.
--
-- A slot may move to another primary and back, with its keys. Clocks differ, so no other primary may prolong or drop a
-- lease before the head says that the primary has changed: writers wait a whole lease then.

-- Whether this is the primary whose replication has this id. Redis takes another one with each restart and promotion, so
-- the same id is the same reign. Another one says nothing: Redis takes one for a first replica, too.
local function replicates_as(replid)
  local info = replid and redis.pcall('INFO', 'replication')
  -- Plain, since a pattern would be tried at each of hundreds of characters.
  return type(info) == 'string' and string.find(info, '\nrole:master\r', 1, true) ~= nil
    and string.find(info, '\nmaster_replid:' .. replid .. '\r', 1, true) ~= nil
end

-- The id of this primary's reign; it changes with each restart and promotion. '-' if the server does not tell it.
-- That is its run, and what a promotion leaves of the primary before it. Then, the id of its replication.
local function reign()
  local info = redis.pcall('INFO', 'server', 'replication')
  if type(info) ~= 'string' then
    return '-'
  end
  local run = string.match(info, '\nrun_id:(%x+)')
  local replid, former = string.match(info, '\nmaster_replid:(%x+)'), string.match(info, '\nmaster_replid2:(%x+)')
  return run and former and string.sub(run, 1, 12) .. string.sub(former, 1, 8) or '-', replid
end

-- The epoch with the reign of this primary, unless one of the two is unknown; and the id of its replication. `replid` is
-- that of the epoch's primary.
local function epoch_here(epoch, replid)
  if replicates_as(replid) then
    return epoch, replid
  end
  local here, replid_here = reign()
  if here == '-' then
    return epoch, replid
  end
  local known, first = string.match(epoch, '^([^:]*)(.*)$')
  return (here == known or known == '-') and epoch or here .. first, replid_here
end
