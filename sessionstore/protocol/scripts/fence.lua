-- Change nothing, in a way that Redis replicates: WAIT after it covers every earlier write, of any connection. WAIT alone
-- covers what its own connection has replicated, and a write that changes nothing replicates nothing.
--
-- KEYS[1] head
--
-- Returns {"status": "ok"}

-- The first removal lets the script run on a Redis that is out of memory.
redis.call('HDEL', KEYS[1], 'fence')
redis.call('HSET', KEYS[1], 'fence', '')
redis.call('HDEL', KEYS[1], 'fence')
return '{"status":"ok"}'
