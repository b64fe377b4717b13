-- End a count: it has all sessions of the project. If another count has begun meanwhile, nothing changes.
--
-- KEYS[1] usage  [2] ledger
-- ARGV[1] the count's id
--
-- Returns {"status": "ok"}

--@include lib/clock
--@include lib/usage

local usage = open_usage(nil, KEYS[1], KEYS[2], '')
if usage and usage.id == ARGV[1] then
  redis.call('HSET', KEYS[1], 'complete', '1')
  redis.call('PEXPIREAT', KEYS[2], int(now_ms() + COUNT_KEEP_MS))
end
return '{"status":"ok"}'
