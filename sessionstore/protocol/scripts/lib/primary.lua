-- Whether leases were taken under this primary.
--
-- A slot may move to another primary and back, with its keys. Clocks differ, so no other primary may prolong or drop a
-- lease before the head says that the primary has changed: writers wait a whole lease then.

-- The id of this primary's reign; it changes with each restart and promotion. '-' if the server does not tell it.
local function reign()
  local info = redis.pcall('INFO', 'replication')
  -- Plain, since a pattern would be tried at each of hundreds of characters.
  local _, before = string.find(type(info) == 'string' and info or '', '\nmaster_replid:', 1, true)
  return before and string.sub(info, before + 1, before + 12) or '-'
end

-- The epoch with the reign of this primary, unless one of the two is unknown.
local function epoch_here(epoch)
  local known, first = string.match(epoch, '^([^:]*)(.*)$')
  local here = reign()
  return (here == known or here == '-' or known == '-') and epoch or here .. first
end
