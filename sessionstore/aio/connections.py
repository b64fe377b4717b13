"""Run calls for asyncio on one connection: each within a deadline, never twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self, TypeVar

from redis.exceptions import NoScriptError, ResponseError

from ..errors import SessionStoreError
from ..options import StoreConfig
from ..protocol.calls import Call, DurableCall, Replicated
from ..protocol.server_identity import IDENTIFY
from ..transport import redis_internals
from ..transport.connect import never_reconnect, new_connection
from ..transport.driver import (
    BaseConnections,
    info_without_answer,
    most_waiting,
    replicated,
    unconfirmed,
    wait_commands,
)
from ..transport.errors import FOREIGN_ERRORS, translate
from ..transport.resp import evalsha, evaluate, pack
from .pipeline import PipelineDriver, read_reply
from .waiting import WaitingConnections

T = TypeVar("T")


class Connections(BaseConnections):
    """Runs the calls of one store, all on one connection: those that are ready together leave together.

    Writes that wait for replicas have connections of their own. The pool only says how to connect.
    """

    def __init__(self, pool: Any, config: StoreConfig) -> None:
        super().__init__(pool, config)
        self._pipeline = PipelineDriver(self._connect, self._deadline_s)
        self._waiting = WaitingConnections(self._connect, most_waiting(pool))

    def with_deadline(self, deadline_s: float) -> Self:
        """Run calls within another deadline, on a connection of their own: neither kind stands in the other's way."""
        other = super().with_deadline(deadline_s)
        other._pipeline = PipelineDriver(other._connect, deadline_s)
        return other

    async def execute(self, call: Call[T]) -> T:
        """Run one script and decode its answer; every error is one of ours."""
        if self._observe is None:
            return call.decode(await self._run(call))
        with self.observing(call):
            return call.decode(await self._run(call))

    async def execute_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run scripts in one round trip. Returns the answers in order, with errors in place of missing answers."""
        started = time.monotonic()
        answers = [self._pipeline.submit(call) for call in calls]
        try:
            payloads = [await answer for answer in answers]
        finally:
            for answer in answers:
                answer.cancel()
        return self.results(calls, payloads, started)

    async def execute_durable(self, write: DurableCall[T]) -> Replicated[T]:
        """Run a script, and wait on its connection until replicas have what it wrote."""
        started = time.monotonic()
        sent = False
        running: Call[Any] = write.call
        try:
            async with self._waiting.lend(self._deadline_s) as connection:
                sent = True
                payload = await _evaluate(connection, write.call)
                [reply] = self.results((write.call,), (payload,), started)
                if not isinstance(reply, SessionStoreError):
                    running, replied_at = write.fence, time.monotonic()
                    commands = wait_commands(write, started + self._deadline_s - replied_at)
                    redis_internals.write(connection, commands)
                    result = replicated(write, reply, replied_at, [await read_reply(connection) for _ in commands])
                    self._report((running,), (None,), replied_at)
                    return result
        except FOREIGN_ERRORS as exc:
            committed = running is write.fence
            error = unconfirmed(exc) if committed else translate(exc, write.call, sent=sent)
            self._report((running,), (error,), started)
            raise error from exc
        raise reply

    async def aclose(self) -> None:
        """Close for good; calls that are under way fail."""
        await self._waiting.aclose()
        await self._pipeline.aclose()

    async def _run(self, call: Call[Any]) -> Any:
        payload = await self._pipeline.submit(call)
        if isinstance(payload, SessionStoreError):
            raise payload
        return payload

    async def _connect(self) -> Any:
        """Connect, and ask the server who it is: another one may have lost the leases that a write counts."""
        connection = new_connection(self.pool, self._deadline_s)
        try:
            await connection.connect()
            never_reconnect(connection)
            info: Any
            try:
                await connection.send_command(*IDENTIFY)
                info = await connection.read_response(disable_decoding=True)
            except ResponseError as exc:
                info = info_without_answer(exc)
            self._server.observed(info, time.monotonic())
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection


async def _evaluate(connection: Any, call: Call[Any]) -> Any:
    """EVALSHA, and EVAL if Redis has forgotten the script; an error reply is raised."""
    redis_internals.write(connection, [pack(evalsha(call))])
    payload = await read_reply(connection)
    if isinstance(payload, NoScriptError):
        redis_internals.write(connection, [pack(evaluate(call))])
        payload = await read_reply(connection)
    if isinstance(payload, Exception):
        raise payload
    return payload
