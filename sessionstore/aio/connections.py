"""Run calls on an asyncio connection pool: one round trip each, within a deadline, never twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, ResponseError

from ..commands import Call
from ..config import Observer
from ..connection import FOREIGN_ERRORS, decode_all, evaluate, evalsha, translate
from ..errors import SessionStoreError

__all__ = ["Connections"]

T = TypeVar("T")


class Connections:
    """The connections of one store."""

    def __init__(self, pool: Any, deadline_s: float, observe: Observer | None) -> None:
        self.pool = pool
        self._deadline_s = deadline_s
        self._observe = observe

    async def execute(self, call: Call[T]) -> T:
        """Run one script and decode its answer; every error is one of ours."""
        if self._observe is None:
            return call.decode(await self._run(call))
        started = time.monotonic()
        failed: SessionStoreError | None = None
        try:
            payload = await self._run(call)
        except SessionStoreError as exc:
            failed = exc
            raise
        finally:
            self._observe(call.script.name, time.monotonic() - started, failed)
        return call.decode(payload)

    async def execute_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run scripts in one round trip; the answers in order, an error in place of the answer that it stands for."""
        if len(calls) == 1:
            try:
                return [await self.execute(calls[0])]
            except SessionStoreError as exc:
                return [exc]
        try:
            async with asyncio.timeout(self._deadline_s):
                connection = await self.pool.get_connection()
                try:
                    payloads = await _evaluate_all(connection, calls)
                finally:
                    await self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            return [translate(exc, call, sent=True) for call in calls]
        return decode_all(calls, payloads)

    async def _run(self, call: Call[Any]) -> Any:
        sent = False
        try:
            async with asyncio.timeout(self._deadline_s):
                connection = await self.pool.get_connection()
                try:
                    sent = True
                    return await _evaluate(connection, call)
                finally:
                    await self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            raise translate(exc, call, sent=sent) from exc


async def _evaluate_all(connection: Any, calls: Sequence[Call[Any]]) -> list[Any]:
    """EVALSHA for all, then EVAL for those whose script Redis has forgotten. Error replies stand for their answers."""
    payloads: list[Any] = []
    try:
        await connection.send_packed_command(connection.pack_commands([evalsha(call) for call in calls]))
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
            await connection.send_command(*evalsha(call))
            return await connection.read_response()
        except NoScriptError:
            await connection.send_command(*evaluate(call))
            return await connection.read_response()
    except ResponseError:
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
