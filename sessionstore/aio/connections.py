"""Run calls on an asyncio connection pool: one round trip each, within a deadline, never twice."""

from __future__ import annotations

import asyncio
import copy
import time
import weakref
from collections.abc import Sequence
from typing import Any, Self, TypeVar

from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from ..errors import CorruptDataError, SessionStoreError, StoreUnavailableError
from ..options import StoreConfig
from ..protocol.calls import Call
from ..protocol.server_identity import IDENTIFY
from ..transport.errors import FOREIGN_ERRORS, is_refusal, translate
from ..transport.resp import decode_all, evalsha, evaluate, pack

T = TypeVar("T")


class Connections:
    """Runs the calls of one store on its pool."""

    def __init__(self, pool: Any, config: StoreConfig) -> None:
        self.pool = pool
        self._deadline_s = config.deadline_s
        self._observe = config.observe
        self._server = config.server
        #: connections that have asked their server who it is since they last connected
        self._identified: weakref.WeakSet[Any] = weakref.WeakSet()

    def with_deadline(self, deadline_s: float) -> Self:
        """Run calls on the same pool within another deadline; no connection asks twice who its server is."""
        other = copy.copy(self)
        other._deadline_s = deadline_s
        return other

    async def execute(self, call: Call[T]) -> T:
        """Run one script and decode its answer; every error is one of ours."""
        if self._observe is None:
            return call.decode(await self._run(call))
        started = time.monotonic()
        try:
            result = call.decode(await self._run(call))
        except (StoreUnavailableError, CorruptDataError) as exc:
            self._observe(call.script.name, time.monotonic() - started, exc)
            raise
        except SessionStoreError:
            # What a script refuses is a good answer.
            self._observe(call.script.name, time.monotonic() - started, None)
            raise
        self._observe(call.script.name, time.monotonic() - started, None)
        return result

    async def execute_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run scripts in one round trip; the answers in order, an error in place of the answer that it stands for."""
        if len(calls) == 1:
            try:
                return [await self.execute(calls[0])]
            except SessionStoreError as exc:
                return [exc]
        started = time.monotonic()
        results: list[Any]
        try:
            async with asyncio.timeout(self._deadline_s):
                connection = await self.pool.get_connection()
                try:
                    payloads = await _evaluate_all(connection, calls)
                finally:
                    await self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            results = [translate(exc, call, sent=True) for call in calls]
        else:
            results = decode_all(calls, payloads)
        if self._observe is not None:
            taken_s = time.monotonic() - started
            for call, result in zip(calls, results, strict=True):
                self._observe(call.script.name, taken_s, result if isinstance(result, SessionStoreError) else None)
        return results

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
        except NoPermissionError:
            info = None
        except ResponseError as exc:
            if is_refusal(exc):
                raise
            info = ""  # no such command: fakeredis
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._server.observed(info, time.monotonic())
        self._identified.add(connection)
        connection.register_connect_callback(self._connected_again)

    async def _connected_again(self, connection: Any) -> None:
        self._identified.discard(connection)


async def _evaluate_all(connection: Any, calls: Sequence[Call[Any]]) -> list[Any]:
    """EVALSHA for all, then EVAL for those whose script Redis has forgotten. Error replies stand for their answers."""
    payloads: list[Any] = []
    try:
        await connection.send_packed_command([pack(evalsha(call)) for call in calls])
        for _ in calls:
            try:
                payloads.append(await connection.read_response())
            except ResponseError as exc:
                payloads.append(exc)
        for index, call in enumerate(calls):
            if isinstance(payloads[index], NoScriptError):
                try:
                    await connection.send_command(*evaluate(call))
                    payloads[index] = await connection.read_response()
                except ResponseError as exc:
                    payloads[index] = exc
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return payloads


async def _evaluate(connection: Any, call: Call[Any]) -> Any:
    """EVALSHA, and EVAL where Redis has forgotten the script.

    Whatever else interrupts it, a cancellation too, closes the connection: the answer that is still to come must not
    be taken for that of the next command.
    """
    try:
        try:
            await connection.send_packed_command(pack(evalsha(call)), check_health=False)
            return await connection.read_response()
        except NoScriptError:
            await connection.send_command(*evaluate(call))
            return await connection.read_response()
    except ResponseError:
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
