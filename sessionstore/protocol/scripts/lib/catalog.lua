-- What an environment's catalog allows. An environment without a catalog allows every well-formed id.
--
-- catalog (hash) exists if the environment has a catalog; mocks (hash): the published mocks by id; local_mocks (hash): the
-- ids of scenario-local mocks, with their scenario; scenarios (hash): the scenarios by id.

-- nil if the override may be activated by itself, else the status that says why not.
local function override_fault(mocks, local_mocks, id)
  if redis.call('HEXISTS', mocks, id) == 1 then
    return nil
  end
  if redis.call('HEXISTS', local_mocks, id) == 1 then
    return 'local_override'
  end
  return 'unknown_override'
end
