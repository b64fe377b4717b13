"""Sessions by the million: a script that writes them as the library's own scripts do, many in one round trip."""

from __future__ import annotations

from typing import Any

import redis

from sessionstore.protocol.keyspace import DEFAULT_PREFIX, EnvironmentKeyspace
from sessionstore.protocol.scripts import compose

__all__ = ["ENVIRONMENT", "PROJECT", "environment_keys", "load_sessions", "session_key"]

PROJECT = "checkout"
ENVIRONMENT = "staging"

#: Sessions that one run of the script writes, and how long they live, in ms.
_BATCH = 1000
_TTL_MS = 24 * 60 * 60 * 1000

# KEYS[1] index  [2] head  [3] changes (channel)  [4..] sessions; ARGV[1] number of the first session  [2] TTL, ms
# [3..] session keys. Scenarios and overrides repeat from session to session, as those of a catalog do. Nobody listens
# yet, so nothing is published.
_LOADER = """
--@include lib/clock
--@include lib/periods
--@include lib/id_array
--@include lib/session
--@include lib/layout
--@include lib/revision

local now, first, ttl = now_ms(), tonumber(ARGV[1]), tonumber(ARGV[2])
local head = open_head(KEYS[2], KEYS[3], now, 0, 0)
for i = 4, #KEYS do
  local number = first + i - 4
  local session = new_session(now)
  session.label = 'CI run ' .. int(number)
  session.scenario = 'scn_scenario' .. int(number % 50)
  session.overrides = '["ovr_mock' .. int(number % 97) .. '","ovr_other' .. int(number % 89) .. '"]'
  session.globalDelayMs = number % 3 * 100
  session.expiresAt = now + ttl
  advance_head(KEYS[2], KEYS[1], head, 'load' .. int(number), now, ttl, KEEP_STEP_MS)
  session.rev = head.rev
  save_session(KEYS[i], session, now, '')
  redis.call('ZADD', KEYS[1], int(now), ARGV[i - 1])
end
return #KEYS - 3
"""


def environment_keys(environment: str = ENVIRONMENT) -> EnvironmentKeyspace:
    """The names in Redis of an environment that a benchmark uses."""
    return EnvironmentKeyspace(DEFAULT_PREFIX, PROJECT, environment)


def session_key(number: int) -> str:
    """The key of a session that was loaded."""
    return f"ci-{number}"


def load_sessions(client: redis.Redis, keys: EnvironmentKeyspace, count: int) -> None:
    """Write `count` sessions, numbered from 0."""
    run: Any = client.register_script(compose("load", _LOADER).text)
    for start in range(0, count, _BATCH):
        names = [session_key(number) for number in range(start, min(start + _BATCH, count))]
        run(keys=[keys.index, keys.head, keys.changes, *map(keys.session, names)], args=[start, _TTL_MS, *names])
