-- Begin to count what a project's sessions take, unless that was begun. From now on, all scripts keep the count.
--
-- KEYS[1] usage  [2] ledger  [3] head of an environment whose part of the count has to be sound
-- ARGV[1] a random id for this count  [2] that environment
--
-- Returns {"status": "ok", "id": of the count, "complete": whether it has all sessions}

--@include lib/clock
--@include lib/usage

local usage = open_usage(nil, KEYS[1], KEYS[2], ARGV[2])
local head = redis.call('HMGET', KEYS[3], 'id', 'counted')
if not usage or usage.complete and head[1] and not head[2] then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'bytes', 0, 'id', ARGV[1])
  redis.call('PEXPIREAT', KEYS[1], int(now_ms() + COUNT_KEEP_MS))
  usage = { id = ARGV[1], complete = false }
end
return '{"status":"ok","id":' .. cjson.encode(usage.id or '') .. ',"complete":' .. tostring(usage.complete) .. '}'
