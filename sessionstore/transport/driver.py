"""Code that both drivers share. Nothing here waits."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from redis.exceptions import NoPermissionError, ResponseError

from ..errors import CorruptDataError, SessionStoreError, StoreUnavailableError
from ..options import StoreConfig
from ..protocol.calls import Call
from .errors import is_refusal
from .resp import decode_all


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


def deliver(subscriptions: Any, requests: Sequence[Any], results: Sequence[Any], now: float) -> None:
    """Give each request its answer or its error."""
    for request, result in zip(requests, results, strict=True):
        if isinstance(result, SessionStoreError):
            subscriptions.failed(request, result, now)
        else:
            subscriptions.answered(request, result, now)
