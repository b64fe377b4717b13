"""Run calls on an asyncio connection pool: one round trip each, within a deadline, never twice."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, ResponseError

from ..commands import Call
from ..config import Observer
from ..connection import FOREIGN_ERRORS, translate
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


async def _evaluate(connection: Any, call: Call[Any]) -> Any:
    """EVALSHA, and EVAL where Redis has forgotten the script.

    Whatever else interrupts it, a cancellation too, closes the connection: the answer that is still to come must not
    be taken for that of the next command.
    """
    script = call.script
    try:
        try:
            await connection.send_command("EVALSHA", script.sha, len(call.keys), *call.keys, *call.args)
            return await connection.read_response()
        except NoScriptError:
            await connection.send_command("EVAL", script.text, len(call.keys), *call.keys, *call.args)
            return await connection.read_response()
    except ResponseError:
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
