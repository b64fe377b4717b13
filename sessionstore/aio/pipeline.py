"""The driver of a pipeline for asyncio: one connection, which is made when there are calls.

While calls are under way, one task reads the replies, and another one writes what is submitted meanwhile. Between calls
no task runs: a store that is not closed can be collected, and a loop that ends has nothing to cancel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError, RedisError, ResponseError

from ..errors import StoreClosedError
from ..options import CLOSED
from ..protocol.calls import Call
from ..transport.errors import FOREIGN_ERRORS, is_refusal
from ..transport.pipeline import Pipeline

log = logging.getLogger("sessionstore")

#: Seconds between two looks at what is late, at least.
_LOOK_S = 0.001


class PipelineDriver:
    """Sends the calls of tasks that are ready together in one write.

    Parameters
    ----------
    connect : callable
        Makes a connection, which never reconnects by itself.
    deadline_s : float
        Seconds that one call may take in all, connecting included.
    """

    def __init__(self, connect: Callable[[], Awaitable[Any]], deadline_s: float) -> None:
        self._connect = connect
        self._deadline_s = deadline_s
        self._pipeline = Pipeline(deadline_s)
        self._connection: Any = None
        #: set while the connection may be written to; when it runs out, the connection is closed
        self._conversation: asyncio.Timeout | None = None
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def submit(self, call: Call[Any]) -> asyncio.Future[Any]:
        """Have a call sent. The future's result is the reply or one of our errors; cancel it to give up."""
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        if self._is_closed:
            answer.set_result(StoreClosedError(CLOSED))
            return answer
        self._pipeline.submit(call, answer, time.monotonic())
        if self._timer is None:
            self._timer = loop.call_later(self._deadline_s, self._expire)
        # A task begins after the tasks that are ready now: what they submit leaves together.
        if self._reader is None:
            self._reader = loop.create_task(self._run(), name="sessionstore-pipeline")
        elif self._conversation is not None:
            self._write_soon()
        return answer

    async def aclose(self) -> None:
        """Close for good. Calls that are under way fail."""
        self._is_closed = True
        tasks = [task for task in (self._reader, self._writer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._lose(RedisConnectionError())
        self._pipeline.refused(RedisConnectionError())
        if self._timer is not None:
            self._timer.cancel()

    async def _run(self) -> None:
        """Send and receive until no call is under way."""
        try:
            while self._pipeline.has_waiting():
                try:
                    await self._ensure_connected()
                except Exception as exc:
                    _log_if_unexpected(exc)
                    self._pipeline.refused(exc)
                else:
                    await self._converse()
        finally:
            self._reader = None
            if self._pipeline.has_waiting() and not self._is_closed:
                # The event loop is about to end and cancels all tasks; those that clean up may call.
                self._reader = asyncio.get_running_loop().create_task(self._run(), name="sessionstore-pipeline")

    async def _ensure_connected(self) -> None:
        if not await _is_usable(self._connection):
            await self._disconnect()
            async with asyncio.timeout(self._deadline_s):
                self._connection = await self._connect()

    async def _converse(self) -> None:
        """Use the connection until each call that was sent has its reply."""
        try:
            async with asyncio.timeout(None) as self._conversation:
                await self._write()
                while self._pipeline.has_sent:
                    if self._pipeline.has_waiting():
                        self._write_soon()
                    reply = await _read(self._connection)
                    self._pipeline.replied(reply, time.monotonic())
            self._conversation = None
        except Exception as exc:
            _log_if_unexpected(exc)
            await self._lose(exc)
        except BaseException:
            await self._lose(RedisConnectionError())
            raise

    def _write_soon(self) -> None:
        if self._writer is None:
            loop = asyncio.get_running_loop()
            self._writer = loop.create_task(self._write_while_reading(), name="sessionstore-pipeline-writer")

    async def _write_while_reading(self) -> None:
        try:
            while self._conversation is not None and await self._write():
                pass
        except FOREIGN_ERRORS:
            pass  # redis-py has closed the connection, which the reader sees
        finally:
            self._writer = None

    async def _write(self) -> bool:
        """Send what waits, as far as one write goes; False where there is nothing."""
        commands = self._pipeline.take(time.monotonic())
        if commands:
            await self._connection.send_packed_command(commands, check_health=False)
        return bool(commands)

    def _expire(self) -> None:
        """Look for what is late, and close the connection if it is silent."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if self._pipeline.expire(now) and self._conversation is not None:
            self._conversation.reschedule(loop.time())
            self._conversation = None
        expire_at = self._pipeline.expire_at()
        self._timer = None if expire_at == math.inf else loop.call_later(max(expire_at - now, _LOOK_S), self._expire)

    async def _lose(self, error: Exception) -> None:
        self._conversation = None
        self._pipeline.lost(error)
        await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*FOREIGN_ERRORS):
                await connection.disconnect(nowait=True)


def _log_if_unexpected(error: Exception) -> None:
    if not isinstance(error, FOREIGN_ERRORS):
        log.error("The connection of a store's calls failed unexpectedly; it is made anew.", exc_info=error)


async def _is_usable(connection: Any) -> bool:
    """Whether a connection is open, and holds no reply that no call waits for."""
    try:
        return connection is not None and connection.is_connected and not await connection.can_read()
    except FOREIGN_ERRORS:
        return False


async def _read(connection: Any) -> Any:
    """Receive one reply; an error reply is returned."""
    try:
        return await connection.read_response(disable_decoding=True, timeout=math.inf, disconnect_on_error=False)
    except RedisError as exc:
        # redis-py makes a connection error of some refusals.
        if isinstance(exc, ResponseError) or is_refusal(exc):
            return exc
        raise
