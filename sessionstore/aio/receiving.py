"""How the driver for asyncio receives what Redis publishes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from ..transport import redis_internals
from ..transport.resp import ReplyParser


def receive(connection: Any, received: Callable[[list[Any]], None]) -> asyncio.Future[None]:
    """Call `received` with the replies of a connection whenever some arrive.

    Returns a future. It fails with what ends the connection, or with what `received` raises; cancel it to stop.

    Raises
    ------
    redis.ConnectionError
        The connection has ended.
    """
    receiver = _Receiver(received)
    if redis_internals.take_over(connection, receiver):
        return receiver.ended
    return asyncio.ensure_future(_receive_in_a_task(connection, received))


class _Receiver(asyncio.Protocol):
    """Applies what arrives in the turn of the event loop that reads it: a task would run in the next one."""

    def __init__(self, received: Callable[[list[Any]], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received = received
        self._parser = ReplyParser()

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        try:
            self._received(self._parser.feed(data))
        except Exception as exc:
            self._end(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or RedisConnectionError("Connection closed by server."))

    def _end(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)


async def _receive_in_a_task(connection: Any, received: Callable[[list[Any]], None]) -> None:
    """Receive from fakeredis, which has no transport."""
    task = asyncio.current_task()
    assert task is not None, "this is one"
    # It ends even if its cancellation is lost, as asyncio.wait_for of Python 3.11 may do.
    while not task.cancelling():
        received([await connection.read_response(timeout=math.inf, disconnect_on_error=False)])
