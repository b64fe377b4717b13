-- How long things are kept, in ms.

-- Milliseconds that a hash outlives its expiresAt: Redis collects it, but expiresAt alone says when a session has
-- ended.
local COLLECT_AFTER_MS = 10000

-- How long an environment is kept after its last session can have expired: longer than anybody holds an ETag.
local KEEP_MS = 30 * 86400000
-- A later time is written only if it gains this much. A touch leaves more to the writes, which also count environments.
local KEEP_STEP_MS = 86400000
local TOUCH_KEEP_STEP_MS = 10 * KEEP_STEP_MS
-- How long a live lease keeps the head at least, and how long it is kept then.
local LEASED_KEEP_MS = 86400000
local FOREVER = 9007199254740992
