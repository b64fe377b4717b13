"""How many requests a key may make, counted over all gateway processes.

The counting is the `limits` package's, on the same Redis: fixed windows, one increment for each request. A window's end
is read once and remembered. Where the count can't be had in time the request is let through: a limit protects the
service, and must not be what takes it down.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from msgspec import Struct
from redis.exceptions import RedisError

from .errors import Headers

__all__ = ["DEFAULT_LIMIT", "Limit", "RateLimiter", "Standing", "parse_limit_setting"]

log = logging.getLogger("gateway")

#: Seconds that a request waits for its count.
_DEADLINE_S = 0.25
#: Keys whose window's end is remembered; there are at most 25 active ones.
_MAX_REMEMBERED = 1000

_SETTING = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,5})\Z")


class Limit(Struct, frozen=True):
    """So many requests in so many seconds."""

    requests: int
    window_s: int


DEFAULT_LIMIT = Limit(120, 60)


def parse_limit_setting(text: str) -> Limit | None:
    """Read a limit as a person writes it, ``120/60``; None is ``off``.

    Raises
    ------
    ValueError
    """
    if text.lower() == "off":
        return None
    match = _SETTING.match(text)
    if match is None:
        raise ValueError("must be requests/seconds, as in 120/60, or off")
    return Limit(int(match[1]), int(match[2]))


class Standing(Struct, frozen=True):
    """Where a key stands: requests left in its window, and seconds until the window ends."""

    limit: Limit
    exceeded: bool
    remaining: int
    reset_s: int

    def headers(self) -> Headers:
        """The ``RateLimit`` headers (draft-ietf-httpapi-ratelimit-headers), and ``Retry-After`` over the limit."""
        headers = (
            (b"ratelimit-policy", b'"key";q=%d;w=%d' % (self.limit.requests, self.limit.window_s)),
            (b"ratelimit", b'"key";r=%d;t=%d' % (self.remaining, self.reset_s)),
        )
        return (*headers, (b"retry-after", b"%d" % max(1, self.reset_s))) if self.exceeded else headers


class RateLimiter:
    """Counts the requests of each key.

    Parameters
    ----------
    pool : redis.asyncio.ConnectionPool
        Connections to the Redis that all gateways share.
    limit : Limit
        What a key may do.
    prefix : str
        In front of every key in Redis.
    on_failure : callable, optional
        Told when a request was let through uncounted.
    """

    def __init__(self, pool: Any, limit: Limit, prefix: str, on_failure: Callable[[], None] | None = None) -> None:
        self._storage = RedisStorage(
            "async+redis://", implementation="redispy", key_prefix=f"{prefix}:limits", connection_pool=pool
        )
        self._limit = limit
        self._item = RateLimitItemPerSecond(limit.requests, limit.window_s, namespace="key")
        self._on_failure = on_failure
        self._ends: dict[str, float] = {}

    async def hit(self, key_id: str) -> Standing | None:
        """Count one request; None where that could not be done in time."""
        name = self._item.key_for(key_id)
        try:
            async with asyncio.timeout(_DEADLINE_S):
                count = await self._storage.incr(name, self._limit.window_s)
                now = time.time()
                end = now + self._limit.window_s if count == 1 else self._ends.get(name, 0.0)
                if end <= now:
                    end = await self._storage.get_expiry(name)
        except (RedisError, OSError, TimeoutError) as exc:
            log.warning("A request could not be counted, and was let through: %r", exc)
            if self._on_failure is not None:
                self._on_failure()
            return None
        if len(self._ends) >= _MAX_REMEMBERED:
            self._ends.clear()
        self._ends[name] = end
        return Standing(
            limit=self._limit,
            exceeded=count > self._limit.requests,
            remaining=max(0, self._limit.requests - count),
            reset_s=max(0, min(self._limit.window_s, math.ceil(end - now))),
        )
