"""Code that both drivers share. Nothing here waits."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet, WeakValueDictionary

from redis.exceptions import MaxConnectionsError, NoPermissionError, ResponseError

from ..errors import CorruptDataError, OutcomeUnknownError, SessionStoreError, StoreUnavailableError
from ..options import StoreConfig
from ..protocol.calls import Call, DurableCall, Replicated
from ..protocol.operations import AwaitApplied
from ..protocol.server_identity import ServerIdentity
from .errors import describe_loss, is_lasting, is_refusal, translate
from .resp import decode_all, evaluate, pack
from .topology import hash_tag, is_misrouted, without_address

T = TypeVar("T")

#: The part of a call's remaining time that Redis may wait for replicas. Its answer takes time, too.
_WAITING_PART = 0.75
#: Seconds without a call or a view after which a route is closed.
IDLE_ROUTE_S = 60.0
#: Routes of one store. The one that has been idle for the longest is closed for another.
MAX_ROUTES = 1000

AnyRoute = TypeVar("AnyRoute", bound="BaseRoute")


class BaseRoute:
    """What serves one hash tag: connections for calls, and subscriptions."""

    def __init__(self, connections: Any, driver: Any) -> None:
        self.connections = connections
        self.driver = driver
        #: local monotonic time of the last call
        self.used_at = -inf


class Routes(Generic[AnyRoute]):
    """The routes of a store on a cluster, one for each hash tag in use. The first call makes a route.

    A slot may move, or its shard fail. That concerns the routes of its tags, and no others.

    Parameters
    ----------
    home : BaseRoute
        Serves the calls without a key.
    make : callable
        Makes the route of a hash tag, without I/O, with what is known of its server.
    close : callable
        Begins to close a route that nothing uses.
    config : StoreConfig
    """

    def __init__(
        self,
        home: AnyRoute,
        make: Callable[[str, ServerIdentity], AnyRoute],
        close: Callable[[AnyRoute], object],
        config: StoreConfig,
    ) -> None:
        self._home = home
        self._make = make
        self._close = close
        #: seconds after which a call is certainly over
        self._busy_s = config.deadline_s + 1
        self._lease_s = config.lease_s
        self._routes: dict[str, AnyRoute] = {}
        #: remembered as long as a route, an environment or an operation knows them
        self._servers: WeakValueDictionary[str, ServerIdentity] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._sweep_at = -inf
        _all_routes.add(self)

    def unlock(self) -> None:
        """Begin with a free lock in a forked process: a thread of the parent may have held it."""
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[AnyRoute]:
        return iter(tuple(self._routes.values()))

    def server_of(self, tag: str) -> ServerIdentity:
        """What is known of the server of a hash tag."""
        with self._lock:
            return self._server_of(tag)

    def _server_of(self, tag: str) -> ServerIdentity:
        server = self._servers.get(tag)
        if server is None:
            server = self._servers[tag] = ServerIdentity(self._lease_s)
        return server

    def of(self, step: Call[Any] | DurableCall[Any] | AwaitApplied) -> AnyRoute:
        """The route for a step of an operation. All keys of a call have the same hash tag."""
        if isinstance(step, AwaitApplied):
            return self.of_tag(step.keyspace.project)
        keys = step.call.keys if isinstance(step, DurableCall) else step.keys
        return self.of_tag(hash_tag(keys[0])) if keys else self._home

    def of_tag(self, tag: str) -> AnyRoute:
        """The route of a hash tag. It stays open for a call, and while it has a view."""
        now = time.monotonic()
        idle: list[AnyRoute] = []
        with self._lock:
            route = self._routes.get(tag)
            if route is None:
                route = self._routes[tag] = self._make(tag, self._server_of(tag))
            route.used_at = now
            if now >= self._sweep_at or len(self._routes) > MAX_ROUTES:
                self._sweep_at = now + IDLE_ROUTE_S / 4
                idle = self._take_idle(now)
        for other in idle:
            self._close(other)
        return route

    def _take_idle(self, now: float) -> list[AnyRoute]:
        unused = sorted(
            (route.used_at, tag)
            for tag, route in self._routes.items()
            if route.used_at < now - self._busy_s and not route.driver.subscriptions.followed
        )
        most = len(self._routes) - MAX_ROUTES
        gone = [tag for number, (used_at, tag) in enumerate(unused) if number < most or used_at < now - IDLE_ROUTE_S]
        return [self._routes.pop(tag) for tag in gone]


_all_routes: WeakSet[Routes[Any]] = WeakSet()


def _after_fork() -> None:
    for routes in tuple(_all_routes):
        routes.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class BaseConnections:
    """The link of one route, the deadline of its calls, and their observer."""

    def __init__(self, link: Any, config: StoreConfig) -> None:
        self.link = link
        self._deadline_s = config.deadline_s
        self._observe = config.observe

    def with_deadline(self, deadline_s: float) -> Self:
        """Run calls within another deadline."""
        other = copy.copy(self)
        other._deadline_s = deadline_s
        return other

    def _translate(self, error: Exception, call: Call[Any], *, sent: bool) -> SessionStoreError:
        return translate(without_address(error) if self.link.moves else error, call, sent=sent)

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


def may_repeat(error: Exception, *, sent: bool) -> bool:
    """Whether a call has not run, and may be served elsewhere or later."""
    if is_misrouted(error):
        return True
    return not sent and not is_lasting(error) and not isinstance(error, MaxConnectionsError)


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
