"""Code that both drivers share. Nothing here waits."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from redis.exceptions import NoPermissionError, ResponseError

from ..errors import CorruptDataError, OutcomeUnknownError, SessionStoreError, StoreUnavailableError
from ..options import StoreConfig
from ..protocol.calls import Call, DurableCall, Replicated
from .errors import describe_loss, is_refusal
from .resp import decode_all, evaluate, pack

T = TypeVar("T")

#: The part of a call's remaining time that Redis may wait for replicas. Its answer takes time, too.
_WAITING_PART = 0.75


class BaseConnections:
    """The pool of one store, its deadline, the identity of its server, and its observer."""

    def __init__(self, pool: Any, config: StoreConfig) -> None:
        self.pool = pool
        self._deadline_s = config.deadline_s
        self._observe = config.observe
        self._server = config.server

    def with_deadline(self, deadline_s: float) -> Self:
        """Run calls within another deadline."""
        other = copy.copy(self)
        other._deadline_s = deadline_s
        return other

    @contextmanager
    def observing(self, call: Call[Any]) -> Iterator[None]:
        """Report the outcome of one call to the observer."""
        started = time.monotonic()
        try:
            yield
        except SessionStoreError as exc:
            self._report((call,), (exc,), started)
            raise
        self._report((call,), (None,), started)

    def results(self, calls: Sequence[Call[Any]], payloads: Sequence[Any], started: float) -> list[Any]:
        """Decode the answers of calls that ran together, and report them to the observer."""
        results = decode_all(calls, payloads)
        self._report(calls, results, started)
        return results

    def _report(self, calls: Sequence[Call[Any]], results: Sequence[Any], started: float) -> None:
        if self._observe is None:
            return
        taken_s = time.monotonic() - started
        for call, result in zip(calls, results, strict=True):
            # For the observer, a domain error is a successful call.
            failed = isinstance(result, StoreUnavailableError | CorruptDataError)
            self._observe(call.script.name, taken_s, result if failed else None)


def info_without_answer(error: ResponseError) -> str | None:
    """The argument for `ServerIdentity.observed` when INFO fails.

    None: the server denies INFO to this user. Empty: it has no INFO, as fakeredis. A refusal of Redis is raised.
    """
    if isinstance(error, NoPermissionError):
        return None
    if is_refusal(error):
        raise error
    return ""


def most_waiting(pool: Any) -> int:
    """How many writes may wait for replicas at the same time: half of a store's connections are left to other calls."""
    connections: int = pool.max_connections
    return max(1, connections // 2)


def wait_commands(write: DurableCall[Any], left_s: float) -> list[bytes]:
    """Commands that wait for the replicas, with `left_s` seconds until the deadline."""
    wait_ms = max(1, int(left_s * _WAITING_PART * 1000))  # 0 would be without end
    return [pack(evaluate(write.fence)), pack(("WAIT", write.replicas, wait_ms))]


def replicated(write: DurableCall[T], reply: T, replied_at: float, answers: Sequence[Any]) -> Replicated[T]:
    """Take the answers to `wait_commands`; an error reply is an exception.

    Raises
    ------
    OutcomeUnknownError
        The server may be no primary any more.
    """
    refusal = next((answer for answer in answers if isinstance(answer, Exception)), None)
    if refusal is None:
        return Replicated(reply, replied_at, answers[-1])
    if isinstance(refusal, NoPermissionError):
        return Replicated(reply, replied_at, 0, "Redis denies this user WAIT, see docs/operations.md")
    if "unknown command" in str(refusal):
        return Replicated(reply, replied_at, 0, "this server has no replicas")
    raise unconfirmed(refusal) from refusal


def unconfirmed(error: Exception) -> OutcomeUnknownError:
    """Our error for one that came after a write was committed, before its replicas were known."""
    return OutcomeUnknownError(
        f"The write was committed; then {describe_loss(error)}, and a failover may lose it. It was applied whole or "
        "not at all; a PUT is safe to send again."
    )


def deliver(subscriptions: Any, requests: Sequence[Any], results: Sequence[Any], now: float) -> None:
    """Give each request its answer or its error."""
    for request, result in zip(requests, results, strict=True):
        if isinstance(result, SessionStoreError):
            subscriptions.failed(request, result, now)
        else:
            subscriptions.answered(request, result, now)
