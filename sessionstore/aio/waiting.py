"""Connections for writes that wait for replicas: WAIT blocks its connection, so the pipeline can't send it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from redis.exceptions import MaxConnectionsError

from ..errors import StoreClosedError
from ..options import CLOSED
from .link import Link, disconnect
from .pipeline import is_usable


class WaitingConnections:
    """Lends each connection to one write at a time.

    Parameters
    ----------
    link : Link
        Makes the connections.
    count : int
        Connections at the same time, at most.
    """

    def __init__(self, link: Link, count: int) -> None:
        self._link = link
        self._free = asyncio.Semaphore(count)
        self._idle: list[Any] = []
        #: of the writes under way
        self._limits: set[asyncio.Timeout] = set()
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def lend(self, within_s: float) -> AsyncIterator[Any]:
        """Lend a connection for `within_s` seconds, half of them to get one.

        After an exception it is closed, and all idle ones: their server may be no primary any more.

        Raises
        ------
        StoreClosedError
        TimeoutError, redis.exceptions.RedisError, OSError
        """
        if self._is_closed:
            raise StoreClosedError(CLOSED)
        connection: Any = None
        async with asyncio.timeout(within_s) as limit:
            try:
                async with asyncio.timeout(within_s / 2):
                    await self._free.acquire()
            except TimeoutError:
                raise MaxConnectionsError from None
            self._limits.add(limit)
            try:
                while connection is None and self._idle:
                    connection = self._idle.pop()
                    if not await is_usable(connection):
                        await disconnect(connection)
                        connection = None
                if connection is None:
                    connection = await self._link.open(within_s)
                yield connection
            except BaseException:
                await disconnect(connection)
                connection = None
                await self._disconnect_idle()
                raise
            finally:
                self._limits.discard(limit)
                self._free.release()
                if self._is_closed:
                    await disconnect(connection)
                elif connection is not None:
                    self._idle.append(connection)

    async def aclose(self) -> None:
        """Close for good. Writes that are under way fail."""
        self._is_closed = True
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())
        await self._disconnect_idle()

    async def _disconnect_idle(self) -> None:
        while self._idle:
            await disconnect(self._idle.pop())
