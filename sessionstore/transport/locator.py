"""Asks a cluster or sentinels where the primaries are, in a thread of its own.

Both drivers use the same code: redis-py's clients for threads, with short time-outs. One question is under way at a
time, and everyone who doubts the last answer waits for the next one, each within its own deadline. Questions have a
pause in between, so many routes that fail together ask no more often than one.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from math import inf
from typing import Any, Protocol

import redis
import redis.asyncio
import redis.exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry
from redis.sentinel import Sentinel

from . import redis_internals
from .topology import Address, Cluster, Sentinels

#: Seconds from the begin of one question to the begin of the next.
PAUSE_S = 0.25


class Directory(Protocol):
    """What can be asked."""

    def ask(self) -> None:
        """Ask, which waits for the network."""

    def find(self, tag: str) -> Address:
        """Look a hash tag up in the last answer."""

    def primaries(self) -> list[Address]:
        """Every primary of the last answer."""

    def remap(self, address: Address) -> Address:
        """How to reach an address that a node announced."""

    def forget(self) -> None:
        """Forget the answer, and leave the connections alone: they belong to the parent of this process."""

    def close(self) -> None:
        """Close the connections."""


class Locator:
    """What is known about the primaries of one store."""

    def __init__(self, directory: Directory, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        #: what the last answer says
        self.find = directory.find
        self.primaries = directory.primaries
        self.remap = directory.remap
        self._is_closed = False
        self.begin_anew()
        _locators.add(self)

    def begin_anew(self) -> None:
        """Know nothing: at first, and in a forked process, which has no thread that asks."""
        self._directory.forget()
        self._lock = threading.Lock()
        self._asked_at = -inf
        self._known_since = -inf
        self._answer: Future[None] | None = None

    def news_since(self, doubted_at: float) -> Future[None] | None:
        """Ask unless the last question was asked later than that; the result is set when the answer is there.

        None: what is known is new enough. After a result, call this again: the question may have been asked before.
        """
        with self._lock:
            if self._known_since > doubted_at:
                return None
            if self._answer is None:
                self._answer = Future()
                # A caller that gives up must not cancel it for the others.
                self._answer.set_running_or_notify_cancel()
                thread = threading.Thread(target=self._ask, args=(self._answer,), name="sessionstore-locator")
                thread.daemon = True
                thread.start()
            return self._answer

    def close(self) -> None:
        """Close the connections."""
        self._is_closed = True
        self._directory.close()

    def _ask(self, answer: Future[None]) -> None:
        time.sleep(max(0.0, self._asked_at + PAUSE_S - self._clock()))
        began = self._asked_at = self._clock()
        error: Exception | None = None
        try:
            self._directory.ask()
        except Exception as exc:
            error = _cause(exc)
        with self._lock:
            if self._answer is answer:
                self._answer = None
                if error is None:
                    self._known_since = began
        if self._is_closed:
            self._directory.close()
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)


def locator_for(site: Cluster | Sentinels, pool: Any, deadline_s: float) -> Locator:
    """Make the locator of a store, whose pool says how to connect."""
    directory = ClusterDirectory if isinstance(site, Cluster) else SentinelDirectory
    return Locator(directory(site, pool, deadline_s))  # type: ignore[arg-type]


class ClusterDirectory:
    """redis-py's table of a cluster's slots."""

    def __init__(self, site: Cluster, pool: Any, deadline_s: float) -> None:
        self._site = site
        self._options = {
            name: value
            for name, value in pool.connection_kwargs.items()
            if name not in ("host", "port", "db") and not name.startswith(("maint_", "retry"))
        } | {
            "socket_timeout": deadline_s / 4,
            "socket_connect_timeout": deadline_s / 4,
            "protocol": 2,
            "connection_class": _class_for_threads(pool.connection_class),
        }
        self._nodes: Any = None

    def ask(self) -> None:
        """Read the table, or read it again."""
        nodes = self._nodes
        try:
            if nodes is None:
                self._nodes = redis_internals.cluster_table(self._site.nodes, self._site.remap, self._options)
            else:
                nodes.initialize()
        except Exception:
            # Begin with the nodes of the URL: the others may have got other addresses.
            self._nodes = None
            if nodes is not None:
                nodes.close()
            raise

    def find(self, tag: str) -> Address:
        """The primary of a tag's slot."""
        nodes = self._nodes
        if nodes is None:
            raise redis_errors.ClusterDownError("no node of the cluster was reached")
        try:
            node = nodes.get_node_from_slot(key_slot(tag.encode()))
        except redis_errors.SlotNotCoveredError as exc:
            raise redis_errors.ClusterDownError("no node serves the slot") from exc
        return node.host, node.port

    def primaries(self) -> list[Address]:
        """Every primary that has slots."""
        nodes = self._nodes
        if nodes is None:
            raise redis_errors.ClusterDownError("no node of the cluster was reached")
        return [(node.host, node.port) for node in nodes.get_nodes_by_server_type("primary")]

    def remap(self, address: Address) -> Address:
        """How to reach an address that a node announced."""
        return self._site.remap(address) if self._site.remap else address

    def forget(self) -> None:
        """Begin with the nodes of the URL."""
        self._nodes = None

    def close(self) -> None:
        """Close the connections."""
        nodes, self._nodes = self._nodes, None
        if nodes is not None:
            nodes.close()


class SentinelDirectory:
    """The primary that sentinels name."""

    def __init__(self, site: Sentinels, pool: Any, deadline_s: float) -> None:
        self._site = site
        self._nodes = list(site.nodes)
        self._options = {
            **site.options,
            "socket_timeout": deadline_s / 4,
            "socket_connect_timeout": deadline_s / 4,
            "protocol": 2,
        }
        self._primary: Address | None = None

    def ask(self) -> None:
        """Ask one sentinel after another."""
        # It retries nothing: the caller does, with a pause.
        options = {**self._options, "retry": Retry(NoBackoff(), 0)}
        with Sentinel(self._nodes, sentinel_kwargs=options, **self._site.manager) as sentinel:  # type: ignore[no-untyped-call]
            failure: Exception | None = None
            try:
                self._primary = sentinel.discover_master(self._site.service)
            except redis_errors.ConnectionError as exc:
                failure = exc
            if failure is not None:
                # It does not say why no sentinel was reached; this does.
                sentinel.sentinels[0].ping()
                raise failure
            # redis-py puts the sentinel that answered first.
            first = sentinel.sentinels[0].connection_pool.connection_kwargs
        self._nodes.sort(key=lambda node: node != (first["host"], first["port"]))

    def find(self, tag: str) -> Address:
        """The one primary."""
        [primary] = self.primaries()
        return primary

    def primaries(self) -> list[Address]:
        """The one primary, in a list."""
        if self._primary is None:
            raise redis_errors.ConnectionError("no sentinel was reached")
        return [self._primary]

    def remap(self, address: Address) -> Address:
        """Sentinels announce the addresses that they are configured with."""
        return address

    def forget(self) -> None:
        """Forget the primary."""
        self._primary = None

    def close(self) -> None:
        """No connection stays open."""


def _class_for_threads(kind: type) -> type:
    encrypted = issubclass(kind, redis.SSLConnection | redis.asyncio.SSLConnection)
    return redis.SSLConnection if encrypted else redis.Connection


def _cause(error: Exception) -> Exception:
    """The error of redis-py or of the socket behind another one: RedisClusterException is no RedisError."""
    found = error
    for cause in _causes(error):
        if isinstance(cause, redis_errors.RedisError | OSError):
            found = cause
    if not isinstance(found, redis_errors.RedisError | OSError):
        found = redis_errors.ConnectionError("the cluster can't be read")
        found.__cause__ = error
    return found


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


_locators: weakref.WeakSet[Locator] = weakref.WeakSet()


def _after_fork() -> None:
    for locator in tuple(_locators):
        locator.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
