"""Run calls for asyncio on one connection: each within a deadline, never twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self, TypeVar

from redis.exceptions import ResponseError

from ..errors import SessionStoreError
from ..options import StoreConfig
from ..protocol.calls import Call
from ..protocol.server_identity import IDENTIFY
from ..transport.connect import never_reconnect, new_connection
from ..transport.driver import BaseConnections, info_without_answer
from .pipeline import PipelineDriver

T = TypeVar("T")


class Connections(BaseConnections):
    """Runs the calls of one store, all on one connection: those that are ready together leave together.

    The pool only says how to connect.
    """

    def __init__(self, pool: Any, config: StoreConfig) -> None:
        super().__init__(pool, config)
        self._pipeline = PipelineDriver(self._connect, self._deadline_s)

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

    async def aclose(self) -> None:
        """Close for good; calls that are under way fail."""
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
