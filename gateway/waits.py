"""Breaks a long wait for the store off when its client has disconnected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")

#: Seconds of a wait before the gateway checks whether the client is still there, at least; and twice as many at most.
_WATCH_AFTER_S = 0.5


class Waits:
    """The waits of one app. One timer serves them all: a timer for each would cost more than the usual wait."""

    def __init__(self) -> None:
        #: when each wait began, by its timeout; the oldest one first
        self._begun: dict[asyncio.Timeout, tuple[float, Request]] = {}
        self._watches: dict[asyncio.Timeout, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def while_connected(self, request: Request, work: Awaitable[T]) -> T:
        """Wait for `work`, as long as the client is there. The whole body must have been read.

        Raises
        ------
        starlette.requests.ClientDisconnect
        """
        loop = asyncio.get_running_loop()
        waiting = asyncio.timeout(None)
        self._begun[waiting] = loop.time(), request
        if self._timer is None:
            self._timer = loop.call_later(_WATCH_AFTER_S, self._look)
        try:
            async with waiting:
                return await work
        except TimeoutError as exc:
            if waiting.expired():
                raise ClientDisconnect from exc
            raise
        finally:
            self._begun.pop(waiting, None)
            if waiting in self._watches:
                self._watches.pop(waiting).cancel()

    def _look(self) -> None:
        """Watch the clients that have waited for long."""
        loop = asyncio.get_running_loop()
        for waiting, (begun, request) in tuple(self._begun.items()):
            if loop.time() - begun < _WATCH_AFTER_S:
                break
            del self._begun[waiting]
            self._watches[waiting] = loop.create_task(_watch(request, waiting))
        self._timer = loop.call_later(_WATCH_AFTER_S, self._look) if self._begun else None


async def _watch(request: Request, waiting: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    waiting.reschedule(asyncio.get_running_loop().time())
