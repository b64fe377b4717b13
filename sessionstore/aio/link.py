"""How the connections of one route are made, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from redis.exceptions import RedisError, ResponseError

from ..protocol.server_identity import IDENTIFY, ServerIdentity
from ..transport import redis_internals
from ..transport.connect import never_reconnect, new_connection
from ..transport.driver import info_without_answer
from ..transport.errors import FOREIGN_ERRORS
from ..transport.locator import Locator
from ..transport.topology import Address, Place


async def disconnect(connection: Any) -> None:
    """Close a connection, if there is one, without waiting for its server."""
    if connection is None:
        return
    redis_internals.abort(connection)
    with contextlib.suppress(*FOREIGN_ERRORS):
        await connection.disconnect(nowait=True)


class Link:
    """Connects to the primary that serves one hash tag, or to the fixed address of the pool.

    Parameters
    ----------
    pool : redis.asyncio.ConnectionPool
        Says how to connect.
    server : ServerIdentity
        Learns which server each connection for calls has reached.
    locator : Locator, optional
        Says where the primary is, if that may change.
    tag : str
        The hash tag.
    """

    def __init__(self, pool: Any, server: ServerIdentity, locator: Locator | None = None, tag: str = "") -> None:
        self.pool = pool
        self._server = server
        self._locator = locator
        self._place = None if locator is None else Place(locator, tag)

    @property
    def moves(self) -> bool:
        """Whether the primary may be elsewhere at the next connection."""
        return self._place is not None

    def doubt(self, error: Exception) -> None:
        """A connection was lost, or its server does not serve the tag."""
        if self._place is not None:
            self._place.doubt(error, time.monotonic())

    async def open(self, within_s: float, *, for_calls: bool = True, address: Address | None = None) -> Any:
        """Make a connection, which never reconnects by itself; `for_calls` unless it is for pub/sub or a check."""
        try:
            if address is None and self._place is not None:
                address = await self._locate()
            connection = new_connection(self.pool, within_s, address)
            try:
                await connection.connect()
                never_reconnect(connection)
                if for_calls or self._place is not None:
                    await self._identify(connection, for_calls=for_calls)
            except BaseException:
                await disconnect(connection)
                raise
        except Exception as exc:
            self.doubt(exc)
            raise
        return connection

    async def primaries(self, within_s: float) -> list[Address | None]:
        """The address of each primary of the store, as it was last read; None: that of the pool.

        Each call also begins to read them anew, for the next one. It waits for that if none is known.
        """
        if self._locator is None:
            return [None]
        try:
            found = self._locator.primaries()
            self._locator.news_since(time.monotonic())
        except RedisError:
            async with asyncio.timeout(within_s):
                await self._await_news(time.monotonic())
            found = self._locator.primaries()
        return [*found]

    async def _locate(self) -> Address:
        assert self._place is not None
        named = self._place.take_named()
        if named is not None:
            return named
        await self._await_news(self._place.doubted_at)
        return self._place.find()

    async def _await_news(self, since: float) -> None:
        assert self._locator is not None
        while (answer := self._locator.news_since(since)) is not None:
            await asyncio.wrap_future(answer)

    async def _identify(self, connection: Any, *, for_calls: bool) -> None:
        """Ask the server who it is: another one may have lost the leases that a write counts."""
        info: Any
        try:
            await connection.send_command(*IDENTIFY)
            info = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
        except ResponseError as exc:
            info = info_without_answer(exc)
        if self._place is not None:
            self._place.check(info)
        if for_calls:
            self._server.observed(info, time.monotonic())
