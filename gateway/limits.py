"""Limits the requests of each key, counted over all gateways of one Redis.

The package `limits` counts, in fixed windows: one round trip for each request. The end of a window is read once and
remembered. If a count does not come in time, the request passes: a limit protects the service, and must not take it
down. From then on the key's requests pass at once. One of them is counted every few seconds, and none waits for it.
When that works, all are counted again. Each key is paused by itself: on a cluster, counters are on several servers.
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
from limits.aio.storage import MemoryStorage, RedisClusterStorage, RedisSentinelStorage, RedisStorage, Storage
from msgspec import Struct

from sessionstore import AsyncSessionStore
from sessionstore.transport.topology import Cluster

log = logging.getLogger("gateway")

#: Seconds that a request waits for its count.
_DEADLINE_S = 0.25
#: Seconds after a failure, or after the next try, until a request of the key is counted.
PAUSE_S = 5.0
#: Seconds by which a window may end later than `limits` says, because Redis rounds a TTL to whole seconds. A client
#: that retries after Retry-After must not be refused for that.
_EXPIRY_ERROR_S = 0.5
#: Keys whose window is remembered.
_MAX_REMEMBERED = 1000

_SETTING = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,5})\Z")


class Limit(Struct, frozen=True):
    """A number of requests in a number of seconds."""

    requests: int
    window_s: int


DEFAULT_LIMIT = Limit(6000, 60)


def parse_limit_setting(text: str) -> Limit | None:
    """Read a limit as a person writes it, ``6000/60``; None is ``off``.

    Raises
    ------
    ValueError
    """
    if text.lower() == "off":
        return None
    match = _SETTING.match(text)
    if match is None:
        raise ValueError("must be requests/seconds, as in 6000/60, or off")
    return Limit(int(match[1]), int(match[2]))


class LimitStatus(Struct, frozen=True):
    """A key's place in its window: the requests left, and seconds until the window ends."""

    limit: Limit
    exceeded: bool
    remaining: int
    reset_s: int

    @property
    def retry_after_s(self) -> int:
        """Seconds after which a client over the limit may retry."""
        return max(1, self.reset_s)

    def headers(self) -> dict[str, str]:
        """``RateLimit`` headers (draft-ietf-httpapi-ratelimit-headers), and ``Retry-After`` over the limit."""
        headers = {
            "ratelimit-policy": f'"key";q={self.limit.requests};w={self.limit.window_s}',
            "ratelimit": f'"key";r={self.remaining};t={self.reset_s}',
        }
        return {**headers, "retry-after": str(self.retry_after_s)} if self.exceeded else headers


def limit_storage(store: AsyncSessionStore, *, embedded: bool) -> Storage:
    """Choose where to count: on the store's Redis, or in memory for an embedded store.

    One Redis is counted on over the store's connections. On a cluster, the keys' counters are on all shards.
    """
    if embedded:
        return MemoryStorage()
    options: dict[str, Any] = {"implementation": "redispy", "key_prefix": f"{store.config.prefix}:limits"}
    site = store.site
    if site is None:
        options["connection_pool"] = store.connection_pool
        return RedisStorage("async+redis://", **options)
    options |= {"socket_timeout": _DEADLINE_S, "socket_connect_timeout": _DEADLINE_S, **site.credentials}
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in site.nodes)
    if isinstance(site, Cluster):
        options["address_remap"] = site.remap
        return RedisClusterStorage(f"async+redis+cluster://{hosts}", **options)
    return RedisSentinelStorage(
        f"async+redis+sentinel://{hosts}",
        service_name=site.service,
        use_replicas=False,
        sentinel_kwargs={**site.options, "socket_timeout": _DEADLINE_S},
        **options,
    )


class RateLimiter:
    """Counts the requests of each key.

    Parameters
    ----------
    storage : limits.aio.storage.Storage
        See `limit_storage`.
    limit : Limit
        The limit of each key.
    on_uncounted : callable, optional
        Called for each request that passed uncounted.
    clock : callable
        Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        storage: Storage,
        limit: Limit,
        on_uncounted: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._limit = limit
        self._item = RateLimitItemPerSecond(limit.requests, limit.window_s, namespace="key")
        self._on_uncounted = on_uncounted
        self._clock = clock
        #: end of each key's window, in seconds since 1970, and the key's last known count
        self._windows: dict[str, tuple[float, int]] = {}
        #: keys whose requests pass, and when the next one is counted, by the clock
        self._paused: dict[str, float] = {}
        self._tries: set[asyncio.Task[LimitStatus | None]] = set()
        self._works = True

    async def aclose(self) -> None:
        """Close the connections of its own."""
        bridge = getattr(self._storage, "bridge", None)
        for name in ("storage", "storage_replica", "sentinel"):
            client = getattr(bridge, name, None)
            if client is not None:
                await client.aclose()

    async def hit(self, key_id: str) -> LimitStatus | None:
        """Count one request; None if that fails, takes too long, or the key is paused."""
        name = self._item.key_for(key_id)
        try_at = self._paused.get(name)
        status = None
        if try_at is None:
            status = await self._count(name)
        elif self._clock() >= try_at:
            self._paused[name] = self._clock() + PAUSE_S
            task = asyncio.create_task(self._count(name), name="limit")
            self._tries.add(task)
            task.add_done_callback(self._tries.discard)
        if status is None:
            self._on_uncounted()
        return status

    async def _count(self, name: str) -> LimitStatus | None:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                count = await self._storage.incr(name, self._limit.window_s)
                now = time.time()
                end, last = self._windows.get(name, (0.0, 0))
                if count == 1:
                    end = now + self._limit.window_s
                elif count <= last or end - now <= _EXPIRY_ERROR_S:
                    # This window is unknown: another gateway may have begun it.
                    end = await self._storage.get_expiry(name) + _EXPIRY_ERROR_S
        except Exception as exc:
            # Not only redis-py's own: a call that is cancelled while it connects makes others raise an AttributeError.
            if self._works:
                log.warning("Requests can't be counted, so they pass: %s", str(exc) or type(exc).__name__)
            self._works = False
            self._paused[name] = self._clock() + PAUSE_S
            return None
        if self._paused.pop(name, None) is not None and not self._works:
            self._works = True
            log.warning("Requests are counted again.")
        if len(self._windows) >= _MAX_REMEMBERED:
            self._windows.clear()
        self._windows[name] = (end, count)
        return LimitStatus(
            limit=self._limit,
            exceeded=count > self._limit.requests,
            remaining=max(0, self._limit.requests - count),
            reset_s=max(0, min(self._limit.window_s, math.ceil(end - now))),
        )
