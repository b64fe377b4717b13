"""Run calls on a connection pool from any thread: one round trip each, within a deadline, never twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, ResponseError

from ..errors import SessionStoreError
from ..options import StoreConfig
from ..protocol.calls import Call, DurableCall, Replicated, ping
from ..replica.follower import Backoff
from ..transport.connect import show_address
from ..transport.driver import BaseConnections, may_repeat, replicated, unconfirmed, wait_commands
from ..transport.errors import FOREIGN_ERRORS
from ..transport.resp import evalsha, evaluate, pack
from ..transport.topology import LONGEST_PAUSE_S, Address, is_misrouted, without_address
from .link import Link

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """Calls that were sent, and the connection for their answers."""

    calls: Sequence[Call[Any]]
    connection: Any
    sent_at: float


class Connections(BaseConnections):
    """Runs the calls of one route on its pool.

    Any interruption of a call closes its connection. The next command must not take the late answer for its own.
    """

    def __init__(self, link: Link, config: StoreConfig) -> None:
        super().__init__(link, config)
        self.pool = link.pool

    def execute(self, call: Call[T]) -> T:
        """Run one script and decode its answer; every error is one of ours."""
        started = time.monotonic()
        try:
            result = call.decode(self._run(call))
        except SessionStoreError as exc:
            self._report((call,), (exc,), started)
            raise
        self._report((call,), (None,), started)
        return result

    def execute_durable(self, write: DurableCall[T]) -> Replicated[T]:
        """Run a script, and wait on its connection until replicas have what it wrote."""
        started = time.monotonic()
        deadline = started + self._deadline_s
        backoff = Backoff(last_s=LONGEST_PAUSE_S) if self.link.moves else None
        while True:
            sent = False
            running: Call[Any] = write.call
            try:
                with self.pool.lend_to_wait(_left(deadline)) as connection:
                    if time.monotonic() >= deadline:
                        raise TimeoutError
                    sent = True
                    payload = _evaluate(connection, write.call, deadline)
                    [reply] = self.results((write.call,), (payload,), started)
                    if not isinstance(reply, SessionStoreError):
                        running, replied_at = write.fence, time.monotonic()
                        commands = wait_commands(write, deadline - replied_at)
                        connection.send_packed_command(commands, check_health=False)
                        result = replicated(write, reply, replied_at, [_read(connection, deadline) for _ in commands])
                        self._report((running,), (None,), replied_at)
                        return result
                raise reply
            except FOREIGN_ERRORS as exc:
                failure = exc
            committed = running is write.fence
            if not committed and self._pause(failure, backoff, deadline, sent=sent):
                continue
            error = unconfirmed(failure) if committed else self._translate(failure, write.call, sent=sent)
            self._report((running,), (error,), started)
            raise error from failure

    def execute_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run scripts in one round trip. Returns the answers in order, with errors in place of missing answers."""
        if len(calls) == 1:
            try:
                return [self.execute(calls[0])]
            except SessionStoreError as exc:
                return [exc]
        started = time.monotonic()
        payloads: list[Any]
        try:
            connection = self.pool.get_connection()
            try:
                connection.send_packed_command([pack(evalsha(call)) for call in calls])
                payloads = _receive_all(connection, calls, started + self._deadline_s)
                payloads = self._take_doubts(connection, payloads)
            except BaseException:
                connection.disconnect()
                raise
            finally:
                self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            self.link.doubt(exc)
            payloads = [exc] * len(calls)
        return self.results(calls, payloads, started)

    def check_primaries(self, within_s: float) -> dict[str, SessionStoreError | None]:
        """Run a script on each primary of the store, all at once; each address with None or the error."""
        try:
            addresses = self.link.primaries(within_s / 2)
        except FOREIGN_ERRORS as exc:
            raise self._translate(exc, ping(), sent=False) from exc
        with ThreadPoolExecutor(len(addresses)) as threads:
            errors = threads.map(self._check, addresses, repeat(within_s / 2))
            return {show_address(self.pool, address): error for address, error in zip(addresses, errors, strict=True)}

    def _check(self, address: Address | None, within_s: float) -> SessionStoreError | None:
        deadline = time.monotonic() + within_s
        try:
            connection = self.link.open(within_s, address)
            try:
                _evaluate(connection, ping(), deadline)
            finally:
                connection.disconnect()
        except FOREIGN_ERRORS as exc:
            return self._translate(exc, ping(), sent=True)
        return None

    def begin(self, calls: Sequence[Call[Any]], *, connect: bool = False) -> Sent | None:
        """Send scripts that only read, or may run twice, without waiting for the answers.

        None: no connection is idle and `connect` is false, or connecting or sending failed; use `execute_all`.
        Otherwise call `finish` until it returns the answers.
        """
        connection = self.pool.get_idle_connection()
        if connection is None and connect:
            with suppress(*FOREIGN_ERRORS):
                connection = self.pool.get_connection()
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
        """Wait for the answers, and return them as `execute_all` does; None if the first does not arrive `within_s`."""
        connection = sent.connection
        done = True
        payloads: list[Any]
        try:
            try:
                if within_s is not None and not connection.can_read(timeout=within_s):
                    done = False
                    return None
                payloads = _receive_all(connection, sent.calls, sent.sent_at + self._deadline_s)
                payloads = self._take_doubts(connection, payloads)
            except BaseException:
                connection.disconnect()
                raise
            finally:
                if done:
                    self.pool.release(connection)
        except FOREIGN_ERRORS as exc:
            self.link.doubt(exc)
            payloads = [exc] * len(sent.calls)
        return self.results(sent.calls, payloads, sent.sent_at)

    def _run(self, call: Call[Any]) -> Any:
        deadline = time.monotonic() + self._deadline_s
        backoff = Backoff(last_s=LONGEST_PAUSE_S) if self.link.moves else None
        while True:
            sent = False
            try:
                connection = self.pool.get_connection(within_s=_left(deadline))
                try:
                    if time.monotonic() >= deadline:
                        # There is no time left to read the answer, so don't send the call.
                        raise TimeoutError
                    sent = True
                    return _evaluate(connection, call, deadline)
                except BaseException as exc:
                    if not isinstance(exc, ResponseError) or (self.link.moves and is_misrouted(exc)):
                        connection.disconnect()
                    raise
                finally:
                    self.pool.release(connection)
            except FOREIGN_ERRORS as exc:
                failure = exc
            if not self._pause(failure, backoff, deadline, sent=sent):
                raise self._translate(failure, call, sent=sent) from failure

    def _pause(self, error: Exception, backoff: Backoff | None, deadline: float, *, sent: bool) -> bool:
        """Pause before a call is tried again; False if it must not be, or not in time."""
        if backoff is None:
            return False
        self.link.doubt(error)
        pause_s = backoff.failed()
        if not may_repeat(error, sent=sent) or time.monotonic() + pause_s > deadline - self._deadline_s / 4:
            return False
        time.sleep(pause_s)
        return True

    def _take_doubts(self, connection: Any, payloads: list[Any]) -> list[Any]:
        """Drop a connection whose server refused calls as misrouted."""
        if not self.link.moves:
            return payloads
        for payload in payloads:
            if is_misrouted(payload):
                connection.disconnect()
                self.link.doubt(payload)
                break
        return [without_address(payload) if isinstance(payload, Exception) else payload for payload in payloads]


def _receive_all(connection: Any, calls: Sequence[Call[Any]], deadline: float) -> list[Any]:
    """Read the answers to EVALSHA, and EVAL those whose script Redis has forgotten."""
    payloads = [_read(connection, deadline) for _ in calls]
    for index, call in enumerate(calls):
        if isinstance(payloads[index], NoScriptError):
            connection.send_command(*evaluate(call))
            payloads[index] = _read(connection, deadline)
    return payloads


def _read(connection: Any, deadline: float) -> Any:
    try:
        return connection.read_response(timeout=_left(deadline))
    except ResponseError as exc:
        return exc


def _evaluate(connection: Any, call: Call[Any], deadline: float) -> Any:
    """EVALSHA, and EVAL if Redis has forgotten the script."""
    try:
        connection.send_packed_command([pack(evalsha(call))], check_health=False)
        return connection.read_response(timeout=_left(deadline))
    except NoScriptError:
        connection.send_command(*evaluate(call))
        return connection.read_response(timeout=_left(deadline))


def _left(deadline: float) -> float:
    """Seconds left, and at least a millisecond: an answer that has arrived is still read."""
    return max(0.001, deadline - time.monotonic())
