"""How many requests a key may make, counted over all gateway processes.

The counting is the `limits` package's, on the same Redis: fixed windows, one run of its script for each request, over
the store's own connections: limits' way through redis-py's client costs as much as a whole request. A window's end
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

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.storage.redis.bridge import RedisBridge
from msgspec import Struct
from redis.exceptions import RedisError

from sessionstore import AsyncSessionStore
from sessionstore.aio.connections import Connections
from sessionstore.errors import SessionStoreError
from sessionstore.options import StoreConfig
from sessionstore.protocol.calls import Call
from sessionstore.protocol.scripts import compose

from .errors import Headers

__all__ = ["DEFAULT_LIMIT", "Limit", "RateLimiter", "Standing", "parse_limit_setting"]

log = logging.getLogger("gateway")

#: Seconds that a request waits for its count.
_DEADLINE_S = 0.25
#: Seconds by which a window may end after what limits reads: Redis rounds a TTL to whole ones. Who tries again after
#: Retry-After must not be refused for that.
_EXPIRY_ERROR_S = 0.5
#: Keys whose window's end is remembered; there are at most 25 active ones.
_MAX_REMEMBERED = 1000

#: limits' own script: it counts, and begins a window where there is none.
_INCREMENT = compose("limits", RedisBridge.SCRIPT_INCR_EXPIRE.decode())

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

    @property
    def retry_after_s(self) -> int:
        """Seconds after which to try again, over the limit."""
        return max(1, self.reset_s)

    def headers(self) -> Headers:
        """The ``RateLimit`` headers (draft-ietf-httpapi-ratelimit-headers), and ``Retry-After`` over the limit."""
        headers = (
            (b"ratelimit-policy", b'"key";q=%d;w=%d' % (self.limit.requests, self.limit.window_s)),
            (b"ratelimit", b'"key";r=%d;t=%d' % (self.remaining, self.reset_s)),
        )
        return (*headers, (b"retry-after", b"%d" % self.retry_after_s)) if self.exceeded else headers


class RateLimiter:
    """Counts the requests of each key.

    Parameters
    ----------
    store : AsyncSessionStore
        On the Redis that all gateways share.
    limit : Limit
        What a key may do.
    on_failure : callable, optional
        Told when a request was let through uncounted.
    """

    def __init__(self, store: AsyncSessionStore, limit: Limit, on_failure: Callable[[], None] | None = None) -> None:
        pool = store.connection_pool
        self._storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix=f"{store.config.prefix}:limits",
            connection_pool=pool,  # type: ignore[arg-type]  # it passes on whatever the client takes
        )
        self._connections = Connections(pool, StoreConfig(deadline_s=_DEADLINE_S, observe=store.config.observe))
        self._limit = limit
        self._item = RateLimitItemPerSecond(limit.requests, limit.window_s, namespace="key")
        self._on_failure = on_failure
        #: when the window of each key ends, and its count as it was known last
        self._windows: dict[str, tuple[float, int]] = {}
        self._works = True

    async def hit(self, key_id: str) -> Standing | None:
        """Count one request; None where that could not be done in time."""
        name = self._item.key_for(key_id)
        call = Call(_INCREMENT, (self._storage.bridge.prefixed_key(name),), (self._limit.window_s, 1), int)
        try:
            count = await self._connections.execute(call)
            now = time.time()
            end, last = self._windows.get(name, (0.0, 0))
            if count == 1:
                end = now + self._limit.window_s
            elif count <= last or end - now <= _EXPIRY_ERROR_S:
                # Nothing is known of this window: another gateway may have begun it.
                async with asyncio.timeout(_DEADLINE_S):
                    end = await self._storage.get_expiry(name) + _EXPIRY_ERROR_S
        except (SessionStoreError, RedisError, OSError, TimeoutError) as exc:
            self._failed(exc)
            return None
        if not self._works:
            self._works = True
            log.info("Requests are counted again.")
        if len(self._windows) >= _MAX_REMEMBERED:
            self._windows.clear()
        self._windows[name] = (end, count)
        return Standing(
            limit=self._limit,
            exceeded=count > self._limit.requests,
            remaining=max(0, self._limit.requests - count),
            reset_s=max(0, min(self._limit.window_s, math.ceil(end - now))),
        )

    def _failed(self, error: Exception) -> None:
        if self._works:
            log.warning("Requests can't be counted, and are let through: %s", str(error) or type(error).__name__)
        self._works = False
        if self._on_failure is not None:
            self._on_failure()
