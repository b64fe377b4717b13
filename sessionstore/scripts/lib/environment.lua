-- Whether an environment may be used: it is registered, or its project has registered none.
local function environment_is_known(environments, slug)
  return redis.call('SISMEMBER', environments, slug) == 1 or redis.call('EXISTS', environments) == 0
end
