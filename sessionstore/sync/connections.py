"""Run calls on a connection pool from any thread: one round trip each, within a deadline, never twice."""

from __future__ import annotations

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

    def execute(self, call: Call[T]) -> T:
        """Run one script and decode its answer; every error is one of ours."""
        if self._observe is None:
            return call.decode(self._run(call))
        started = time.monotonic()
        failed: SessionStoreError | None = None
        try:
            payload = self._run(call)
        except SessionStoreError as exc:
            failed = exc
            raise
        finally:
            self._observe(call.script.name, time.monotonic() - started, failed)
        return call.decode(payload)

    def _run(self, call: Call[Any]) -> Any:
        deadline = time.monotonic() + self._deadline_s
        sent = False
        try:
            connection = self.pool.get_connection()
            try:
                sent = True
                return _evaluate(connection, call, deadline)
            finally:
                self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            raise translate(exc, call, sent=sent) from exc


def _evaluate(connection: Any, call: Call[Any], deadline: float) -> Any:
    """EVALSHA, and EVAL where Redis has forgotten the script.

    Whatever else interrupts it closes the connection: the answer that is still to come must not be taken for that of
    the next command.
    """
    script = call.script
    try:
        try:
            connection.send_command("EVALSHA", script.sha, len(call.keys), *call.keys, *call.args)
            return connection.read_response(timeout=_left(deadline))
        except NoScriptError:
            connection.send_command("EVAL", script.text, len(call.keys), *call.keys, *call.args)
            return connection.read_response(timeout=_left(deadline))
    except ResponseError:
        raise
    except BaseException:
        connection.disconnect()
        raise


def _left(deadline: float) -> float:
    """Seconds left; a little more than none, so that an answer which is already there is still read."""
    return max(0.001, deadline - time.monotonic())
