-- Whether an environment may be used: it is registered, or its project has registered none.
local function environment_is_known(environments, slug)
  return redis.call('SISMEMBER', environments, slug) == 1 or redis.call('EXISTS', environments) == 0
end

-- The same, and whether the environment has a catalog; in one call if its project has neither.
local function environment_and_catalog(environments, slug, catalog)
  local there = redis.call('EXISTS', environments, catalog)
  if there == 0 then
    return true, false
  end
  local has_catalog = there == 2 or redis.call('EXISTS', catalog) == 1
  local registers_none = there == 1 and has_catalog
  return registers_none or redis.call('SISMEMBER', environments, slug) == 1, has_catalog
end
