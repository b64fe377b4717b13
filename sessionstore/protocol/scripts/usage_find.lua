-- Find environments of a project that have a head or an index, by one page of all names in Redis: an environment that no
-- catalog registers is known by nothing else.
--
-- KEYS[1] usage: names the project's slot
-- ARGV[1] cursor, '0' to begin  [2] about how many names to look at  [3] what an environment's names begin with
--
-- Returns {"cursor": text, '0' at the end, "environments": [slug, …]}

--@include lib/text

local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[3] .. '*:[hi][en]*', 'COUNT', ARGV[2])
local slugs = {}
for _, name in ipairs(page[2]) do
  local slug, kind = string.match(name, '([^:]*):([^:]*)$')
  if (kind == 'head' or kind == 'index') and name == ARGV[3] .. slug .. ':' .. kind and is_slug(slug) then
    slugs[#slugs + 1] = '"' .. slug .. '"'
  end
end
return '{"cursor":"' .. page[1] .. '","environments":[' .. table.concat(slugs, ',') .. ']}'
