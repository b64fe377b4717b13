"""The driver of a pipeline for asyncio: one connection, which is made when there are calls.

One task reads the replies. It ends when no call has been made for a deadline: a store that is not closed can be
collected. The connection stays open.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError, RedisError, ResponseError

from ..errors import StoreClosedError
from ..options import CLOSED
from ..protocol.calls import Call
from ..replica.follower import Backoff
from ..transport import redis_internals
from ..transport.errors import FOREIGN_ERRORS, is_lasting, is_refusal
from ..transport.pipeline import Pipeline
from ..transport.topology import LONGEST_PAUSE_S
from .link import Link, disconnect

log = logging.getLogger("sessionstore")

#: Calls of one write, about. Redis runs them while the tasks that are ready make further calls.
BATCH = 8
#: Seconds between two looks at what is late, at least.
_LOOK_S = 0.001


class PipelineDriver:
    """Sends the calls of tasks that are ready together in one write, or in several if they are many.

    Parameters
    ----------
    link : Link
        Makes the connections.
    deadline_s : float
        Seconds that one call may take in all, connecting included.
    """

    def __init__(self, link: Link, deadline_s: float) -> None:
        self._link = link
        self._deadline_s = deadline_s
        self._pipeline = Pipeline(deadline_s, reroutes=link.moves)
        self._connection: Any = None
        self._reader: asyncio.Task[None] | None = None
        #: set while the connection may be written to; when it runs out, the reader stops
        self._conversation: asyncio.Timeout | None = None
        self._writing: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: whether the reader stays for further calls
        self._lingers = True
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
            self._timer = loop.call_later(self._deadline_s, self._look)
        if self._reader is None:
            self._read_soon()
        elif self._pipeline.waiting >= BATCH:
            self._write()
        elif self._writing is None:
            # After the tasks that are ready now, which may make further calls.
            self._writing = loop.call_soon(self._write)
        return answer

    async def aclose(self) -> None:
        """Close for good. Calls that are under way fail."""
        self._is_closed = True
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._lose(RedisConnectionError())
        self._pipeline.refused(RedisConnectionError())
        if self._timer is not None:
            self._timer.cancel()

    def _read_soon(self) -> None:
        self._reader = asyncio.get_running_loop().create_task(self._run(), name="sessionstore-pipeline")

    async def _run(self) -> None:
        """Send and receive until no call is under way."""
        backoff: Backoff | None = None
        try:
            while self._pipeline.has_waiting():
                try:
                    await self._ensure_connected()
                except Exception as exc:
                    _log_if_unexpected(exc)
                    if self._link.moves and not is_lasting(exc):
                        self._pipeline.delayed(exc)
                    else:
                        self._pipeline.refused(exc)
                else:
                    await self._converse()
                if self._pipeline.is_delayed:
                    backoff = backoff or Backoff(last_s=LONGEST_PAUSE_S)
                    await asyncio.sleep(backoff.failed())
        except asyncio.CancelledError:
            # The event loop is about to end. Tasks that clean up may call once more.
            self._lingers = False
            raise
        finally:
            self._reader = None
            if self._pipeline.has_waiting() and not self._is_closed:
                self._read_soon()

    async def _ensure_connected(self) -> None:
        if not await is_usable(self._connection):
            await self._disconnect()
            async with asyncio.timeout(self._deadline_s):
                self._connection = await self._link.open(self._deadline_s)

    async def _converse(self) -> None:
        """Use the connection until it ends, is silent, or idle."""
        try:
            async with asyncio.timeout(None) as self._conversation:
                self._write()
                while self._lingers or self._pipeline.has_sent:
                    self._pipeline.replied(await read_reply(self._connection), time.monotonic())
                    if self._is_closed or self._conversation is None:
                        # A cancellation was lost, as asyncio.wait_for of Python 3.11 may do.
                        raise TimeoutError
                    if self._writing is None and self._pipeline.has_waiting():
                        self._write()
            self._conversation = None
        except Exception as exc:
            idle = isinstance(exc, TimeoutError) and not self._pipeline.has_sent
            if not idle:
                _log_if_unexpected(exc)
                self._link.doubt(exc)
                await self._lose(exc)
        except BaseException:
            await self._lose(RedisConnectionError())
            raise

    def _write(self) -> None:
        """Send what waits."""
        self._writing = None
        # If the connection has ended, the reader is about to see that.
        if self._conversation is not None and not redis_internals.has_ended(self._connection):
            commands = self._pipeline.take(time.monotonic())
            if commands:
                redis_internals.write(self._connection, commands)

    def _look(self) -> None:
        """Fail the calls that are late; end the conversation if the connection is silent, or idle for a deadline."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        silent = self._pipeline.expire(now)
        look_at = self._pipeline.expire_at()
        idle = look_at == math.inf and now - self._pipeline.heard_at >= self._deadline_s
        if (silent or idle) and self._conversation is not None:
            self._conversation.reschedule(loop.time())
            self._conversation = None
        if idle:
            self._timer = None
        else:
            self._timer = loop.call_later(max(min(look_at - now, self._deadline_s), _LOOK_S), self._look)

    async def _lose(self, error: Exception) -> None:
        self._conversation = None
        self._pipeline.lost(error)
        await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        await disconnect(connection)


def _log_if_unexpected(error: Exception) -> None:
    if not isinstance(error, FOREIGN_ERRORS):
        log.error("The connection of a store's calls failed unexpectedly; it is made anew.", exc_info=error)


async def is_usable(connection: Any) -> bool:
    """Whether a connection is open, and holds no reply that no call waits for."""
    try:
        return connection is not None and connection.is_connected and not await connection.can_read()
    except FOREIGN_ERRORS:
        return False


async def read_reply(connection: Any) -> Any:
    """Receive one reply; an error reply is returned."""
    try:
        reply = await connection.read_response(disable_decoding=True, timeout=math.inf, disconnect_on_error=False)
    except RedisError as exc:
        # redis-py makes a connection error of some refusals.
        if isinstance(exc, ResponseError) or is_refusal(exc):
            return exc
        raise
    if reply is None:
        # No script answers so; but redis-py does if the socket times out.
        raise RedisConnectionError
    return reply
