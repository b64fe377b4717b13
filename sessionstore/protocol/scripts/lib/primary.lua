-- Whether leases were taken under this primary.
--
-- A slot may move to another primary and back, with its keys. Clocks differ, so no other primary may prolong or drop a
-- lease before the head says that the primary has changed: writers wait a whole lease then.

-- The id of this primary's reign; it changes with each restart and promotion. '-' if the server does not tell it.
-- That is its run, and what a promotion leaves of the primary before it. master_replid would change, too, when a first
-- replica connects, which harms no lease.
local function reign()
  local info = redis.pcall('INFO', 'server', 'replication')
  if type(info) ~= 'string' then
    return '-'
  end
  -- Plain, since a pattern would be tried at each of hundreds of characters.
  local _, run = string.find(info, '\nrun_id:', 1, true)
  local _, former = string.find(info, '\nmaster_replid2:', 1, true)
  return run and former and string.sub(info, run + 1, run + 12) .. string.sub(info, former + 1, former + 8) or '-'
end

-- The epoch with the reign of this primary, unless one of the two is unknown.
local function epoch_here(epoch)
  local known, first = string.match(epoch, '^([^:]*)(.*)$')
  local here = reign()
  return (here == known or here == '-' or known == '-') and epoch or here .. first
end
