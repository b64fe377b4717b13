"""Limits the requests of each key, counted over all gateways of one Redis, in fixed windows.

If a count does not come in time, the request passes: a limit protects the service, and must not take it down. From then
on requests pass at once. One of them is counted every few seconds, and none waits for it. When that works, all are
counted again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable

from msgspec import Struct

from sessionstore import AsyncSessionStore, SessionStoreError

log = logging.getLogger("gateway")

#: Seconds that a request waits for its count.
_DEADLINE_S = 0.25
#: Seconds after a failure, or after the next try, until a request is counted.
PAUSE_S = 5.0

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


class RateLimiter:
    """Counts the requests of each key.

    Parameters
    ----------
    store : AsyncSessionStore
        Whose Redis counts.
    limit : Limit
        The limit of each key.
    on_uncounted : callable, optional
        Called for each request that passed uncounted.
    clock : callable
        Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        store: AsyncSessionStore,
        limit: Limit,
        on_uncounted: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = store.api_keys
        self._limit = limit
        self._on_uncounted = on_uncounted
        self._clock = clock
        #: when the next request is counted, by the clock; None: all are
        self._try_at: float | None = None
        self._trying: asyncio.Task[LimitStatus | None] | None = None

    async def hit(self, key_id: str) -> LimitStatus | None:
        """Count one request; None if that fails, takes too long, or is paused."""
        status = None
        if self._try_at is None:
            status = await self._count(key_id)
        elif self._clock() >= self._try_at:
            self._try_at = self._clock() + PAUSE_S
            self._trying = asyncio.create_task(self._count(key_id), name="limit")
        if status is None:
            self._on_uncounted()
        return status

    async def _count(self, key_id: str) -> LimitStatus | None:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                count = await self._keys.count_request(key_id, self._limit.window_s)
        except (SessionStoreError, TimeoutError) as exc:
            if self._try_at is None:
                log.warning("Requests can't be counted, so they pass: %s", str(exc) or type(exc).__name__)
            self._try_at = self._clock() + PAUSE_S
            return None
        if self._try_at is not None:
            self._try_at = None
            log.warning("Requests are counted again.")
        return LimitStatus(
            limit=self._limit,
            exceeded=count.requests > self._limit.requests,
            remaining=max(0, self._limit.requests - count.requests),
            reset_s=math.ceil(count.left / 1000),
        )
