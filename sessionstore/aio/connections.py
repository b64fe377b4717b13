"""Run calls on an asyncio connection pool: one round trip each, within a deadline, never twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, ResponseError

from ..errors import SessionStoreError
from ..protocol.calls import Call
from ..protocol.server_identity import IDENTIFY
from ..transport.driver import BaseConnections, info_without_answer
from ..transport.errors import FOREIGN_ERRORS, translate
from ..transport.resp import evalsha, evaluate, pack

T = TypeVar("T")


class Connections(BaseConnections):
    """Runs the calls of one store on its pool.

    Any interruption of a call, a cancellation too, closes its connection. The next command must not take the late
    answer for its own.
    """

    async def execute(self, call: Call[T]) -> T:
        """Run one script and decode its answer; every error is one of ours."""
        if self._observe is None:
            return call.decode(await self._run(call))
        with self.observing(call):
            return call.decode(await self._run(call))

    async def execute_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run scripts in one round trip. Returns the answers in order, with errors in place of missing answers.

        Several calls together need not identify the server first. The only writes among them are touches, which count
        no leases.
        """
        if len(calls) == 1:
            try:
                return [await self.execute(calls[0])]
            except SessionStoreError as exc:
                return [exc]
        started = time.monotonic()
        payloads: list[Any]
        try:
            async with asyncio.timeout(self._deadline_s):
                connection = await self.pool.get_connection()
                try:
                    payloads = await _evaluate_all(connection, calls)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    await self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            payloads = [exc] * len(calls)
        return self.results(calls, payloads, started)

    async def _run(self, call: Call[Any]) -> Any:
        sent = False
        try:
            async with asyncio.timeout(self._deadline_s):
                connection = await self.pool.get_connection()
                try:
                    if call.writes and connection not in self._identified:
                        await self._identify(connection)
                    sent = True
                    return await _evaluate(connection, call)
                except ResponseError:
                    raise
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    await self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            raise translate(exc, call, sent=sent) from exc

    async def _identify(self, connection: Any) -> None:
        """Ask a newly connected server who it is: another one may have lost the leases that a write counts."""
        info: Any
        try:
            await connection.send_command(*IDENTIFY)
            info = await connection.read_response()
        except ResponseError as exc:
            info = info_without_answer(exc)
        self.identified(connection, info)


async def _evaluate_all(connection: Any, calls: Sequence[Call[Any]]) -> list[Any]:
    """EVALSHA for all, then EVAL for those whose script Redis has forgotten. Error replies stand for their answers."""
    await connection.send_packed_command([pack(evalsha(call)) for call in calls])
    payloads = [await _read(connection) for _ in calls]
    for index, call in enumerate(calls):
        if isinstance(payloads[index], NoScriptError):
            await connection.send_command(*evaluate(call))
            payloads[index] = await _read(connection)
    return payloads


async def _read(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as exc:
        return exc


async def _evaluate(connection: Any, call: Call[Any]) -> Any:
    """EVALSHA, and EVAL if Redis has forgotten the script."""
    try:
        await connection.send_packed_command(pack(evalsha(call)), check_health=False)
        return await connection.read_response()
    except NoScriptError:
        await connection.send_command(*evaluate(call))
        return await connection.read_response()
