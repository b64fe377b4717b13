"""Run calls on a connection pool from any thread: one round trip each, within a deadline, never twice."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from ..errors import CorruptDataError, SessionStoreError, StoreUnavailableError
from ..options import StoreConfig
from ..protocol.calls import Call
from ..protocol.server_identity import IDENTIFY
from ..transport.errors import FOREIGN_ERRORS, is_refusal, translate
from ..transport.resp import decode_all, evalsha, evaluate, pack

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """Calls that are on their way, and the connection that their answers come on."""

    calls: Sequence[Call[Any]]
    connection: Any
    sent_at: float


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

    def execute(self, call: Call[T]) -> T:
        """Run one script and decode its answer; every error is one of ours."""
        if self._observe is None:
            return call.decode(self._run(call))
        started = time.monotonic()
        try:
            result = call.decode(self._run(call))
        except (StoreUnavailableError, CorruptDataError) as exc:
            self._observe(call.script.name, time.monotonic() - started, exc)
            raise
        except SessionStoreError:
            # What a script refuses is a good answer.
            self._observe(call.script.name, time.monotonic() - started, None)
            raise
        self._observe(call.script.name, time.monotonic() - started, None)
        return result

    def execute_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run scripts in one round trip; the answers in order, an error in place of the answer that it stands for."""
        if len(calls) == 1:
            try:
                return [self.execute(calls[0])]
            except SessionStoreError as exc:
                return [exc]
        started = time.monotonic()
        results: list[Any]
        try:
            connection = self.pool.get_connection()
            try:
                payloads = _evaluate_all(connection, calls, started + self._deadline_s)
            finally:
                self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            results = [translate(exc, call, sent=True) for call in calls]
        else:
            results = decode_all(calls, payloads)
        self._report(calls, results, started)
        return results

    def begin(self, calls: Sequence[Call[Any]]) -> Sent | None:
        """Send scripts that only read, or may run twice, without waiting for the answers.

        None where no connection is at hand, or sending failed: use `execute_all`. Else `finish` has to be called until
        it has the answers.
        """
        connection = self.pool.get_idle_connection()
        if connection is None:
            return None
        try:
            connection.send_packed_command([pack(evalsha(call)) for call in calls], check_health=False)
        except BaseException as exc:
            connection.disconnect()
            self.pool.release(connection)
            if isinstance(exc, FOREIGN_ERRORS):
                return None
            raise
        return Sent(calls, connection, time.monotonic())

    def finish(self, sent: Sent, within_s: float | None = None) -> list[Any] | None:
        """Wait for the answers, as `execute_all` returns them; None where the first one is not there `within_s`."""
        connection = sent.connection
        done = True
        results: list[Any]
        try:
            try:
                if within_s is not None and not connection.can_read(timeout=within_s):
                    done = False
                    return None
                payloads = _receive_all(connection, sent.calls, sent.sent_at + self._deadline_s)
            except BaseException:
                connection.disconnect()
                raise
            finally:
                if done:
                    self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            results = [translate(exc, call, sent=True) for call in sent.calls]
        else:
            results = decode_all(sent.calls, payloads)
        self._report(sent.calls, results, sent.sent_at)
        return results

    def _report(self, calls: Sequence[Call[Any]], results: Sequence[Any], started: float) -> None:
        """Tell the observer of calls that ran together."""
        if self._observe is not None:
            taken_s = time.monotonic() - started
            for call, result in zip(calls, results, strict=True):
                self._observe(call.script.name, taken_s, result if isinstance(result, SessionStoreError) else None)

    def _run(self, call: Call[Any]) -> Any:
        deadline = time.monotonic() + self._deadline_s
        sent = False
        try:
            connection = self.pool.get_connection()
            try:
                if call.writes and connection not in self._identified:
                    self._identify(connection, deadline)
                if time.monotonic() >= deadline:
                    # Not sent, rather than sent without the time to hear the answer.
                    raise TimeoutError
                sent = True
                return _evaluate(connection, call, deadline)
            finally:
                self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            raise translate(exc, call, sent=sent) from exc

    def _identify(self, connection: Any, deadline: float) -> None:
        """Ask a newly connected server who it is: another one may have lost the leases that a write counts."""
        info: Any
        try:
            connection.send_command(*IDENTIFY)
            info = connection.read_response(timeout=_left(deadline))
        except NoPermissionError:
            info = None
        except ResponseError as exc:
            if is_refusal(exc):
                raise
            info = ""  # no such command: fakeredis
        except BaseException:
            connection.disconnect()
            raise
        self._server.observed(info, time.monotonic())
        self._identified.add(connection)
        connection.register_connect_callback(self._connected_again)

    def _connected_again(self, connection: Any) -> None:
        self._identified.discard(connection)


def _evaluate_all(connection: Any, calls: Sequence[Call[Any]], deadline: float) -> list[Any]:
    """EVALSHA for all, then EVAL for those whose script Redis has forgotten. Error replies stand for their answers."""
    try:
        connection.send_packed_command([pack(evalsha(call)) for call in calls])
        return _receive_all(connection, calls, deadline)
    except BaseException:
        connection.disconnect()
        raise


def _receive_all(connection: Any, calls: Sequence[Call[Any]], deadline: float) -> list[Any]:
    """Read the answers to EVALSHA, and EVAL those whose script Redis has forgotten."""
    payloads: list[Any] = []
    for _ in calls:
        try:
            payloads.append(connection.read_response(timeout=_left(deadline)))
        except ResponseError as exc:
            payloads.append(exc)
    for index, call in enumerate(calls):
        if isinstance(payloads[index], NoScriptError):
            try:
                connection.send_command(*evaluate(call))
                payloads[index] = connection.read_response(timeout=_left(deadline))
            except ResponseError as exc:
                payloads[index] = exc
    return payloads


def _evaluate(connection: Any, call: Call[Any], deadline: float) -> Any:
    """EVALSHA, and EVAL where Redis has forgotten the script.

    Whatever else interrupts it closes the connection: the answer that is still to come must not be taken for that of
    the next command.
    """
    try:
        try:
            connection.send_packed_command([pack(evalsha(call))], check_health=False)
            return connection.read_response(timeout=_left(deadline))
        except NoScriptError:
            connection.send_command(*evaluate(call))
            return connection.read_response(timeout=_left(deadline))
    except ResponseError:
        raise
    except BaseException:
        connection.disconnect()
        raise


def _left(deadline: float) -> float:
    """Seconds left; a little more than none, so that an answer which is already there is still read."""
    return max(0.001, deadline - time.monotonic())
