"""The connection pool of an asyncio store that makes its own connections."""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError

from ..errors import StoreClosedError
from ..options import CLOSED, StoreConfig
from ..transport import redis_internals
from ..transport.connect import client_options


def pool_settings(config: StoreConfig) -> dict[str, Any]:
    """Options of the pool and its connections.

    No socket time-out: redis-py would make a task for each command, and the call's deadline suffices.
    """
    return {**client_options(config.deadline_s), "socket_timeout": None}


class Pool(redis.asyncio.ConnectionPool):
    """Lends each connection to one call at a time. If none is free, a call waits until its deadline.

    redis-py's `BlockingConnectionPool` does this too, but its condition, time-out and events for each call cost a third
    of a round trip. This pool needs no time-out besides the caller's.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.idle = redis_internals.idle_connections(self)
        self.lent = redis_internals.lent_connections(self)
        self._free = asyncio.Semaphore(self.max_connections)
        self._is_closed = False

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Lend a connection that is ready for a command."""
        await self._free.acquire()
        try:
            if self._is_closed:
                raise StoreClosedError(CLOSED)
            connection: Any = self.idle.pop() if self.idle else self.make_connection()  # type: ignore[no-untyped-call]
            self.lent.add(connection)
        except BaseException:
            self._free.release()
            raise
        try:
            # Connect again if Redis has closed the connection, or if it holds an answer to no command.
            if connection.is_connected and (connection.should_reconnect() or await self._is_stale(connection)):
                await connection.disconnect(nowait=True)
            if not connection.is_connected:
                await connection.connect()
                if self._is_closed:
                    raise StoreClosedError(CLOSED)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        """Take a connection back, before the first await, so that a cancellation can't lose it."""
        self.lent.discard(connection)
        self.idle.append(connection)
        self._free.release()
        if self._is_closed:
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close for good: lent connections break. If a call connects one again, `release` closes it."""
        self._is_closed = True
        lent = tuple(self.lent)
        self.lent.clear()
        for connection in lent:
            # Without `nowait`, redis-py keeps the writer until the socket is closed. From Python 3.12 on, a call that
            # writes in between raises TypeError.
            await connection.disconnect(nowait=True)
        await super().aclose()

    async def _is_stale(self, connection: Any) -> bool:
        try:
            return bool(await connection.can_read())
        except (RedisConnectionError, OSError):
            return True
