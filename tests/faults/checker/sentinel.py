"""A primary, two replicas and three sentinels for the checker.

All processes reach a server by the same address, so none has a relay of its own.

**Lost histories.** Sentinels don't stop a primary that they replace. It goes on until they make it a replica, some ten
seconds later. But it refuses writes when its replicas have left it, by `min-replicas-to-write`. On a busy machine
it also refuses them while a replica lags, and then goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from ...support.polling import await_true
from ...support.redis_sentinel import RedisSentinels
from ...support.redis_server import RedisServer
from .child import PROJECTS
from .plan import SENTINEL_KINDS, Planned
from .relay import SortingRelay
from .servers import DURABLE, PATIENCE_S, Access, FaultLog

__all__ = ["SentinelServers"]

#: As guarantees.md demands: two seconds more than the lag of a replica. A busy machine must not fail over, either.
DOWN_AFTER_MS = 3000

#: All writers: a fault that concerns them all.
_WRITERS = ("writer-",)


class SentinelServers:
    """One primary, two replicas, three sentinels."""

    projects = PROJECTS[:1]
    kinds = SENTINEL_KINDS

    def __init__(self) -> None:
        options = {**DURABLE, "min_replicas_to_write": "1", "min_replicas_max_lag": "1"}
        self._sentinels = RedisSentinels(2, 3, down_after_ms=DOWN_AFTER_MS, **options)
        self._stack = contextlib.ExitStack()
        self._home: RedisServer
        self._log: FaultLog

    @property
    def url(self) -> str:
        return self._sentinels.url

    def start(self, folder: Path, log: FaultLog) -> None:
        self._log = log
        self._stack.enter_context(self._sentinels)
        self._await_order()
        self._home = self._sentinels.primary

    def close(self) -> None:
        self._stack.close()

    def access(self, name: str) -> Access:
        return Access([self.url])

    def relay(self, name: str) -> SortingRelay:
        raise AssertionError("under Sentinel, no process has a relay")

    def client(self, project: str) -> redis.Redis:
        return self._home.client(decode_responses=True)

    def ports(self) -> list[int]:
        return [node.port for node in self._sentinels.nodes]

    def concerned(self, port: int) -> tuple[str, ...]:
        return self.projects if port == self._home.port else ()

    def await_healthy(self) -> None:
        with self._sentinels.heard():
            self._await_order()
            self._check_home()

    def do(self, planned: Planned, hold_s: float) -> None:
        with self._sentinels.heard():
            self._do(planned, hold_s)

    def _do(self, planned: Planned, hold_s: float) -> None:
        self._check_home()
        primary = self._home
        match planned.kind.name:
            case "orderly-failover":
                self._replace(planned, primary, self._sentinels.fail_over, lambda: None)
            case "primary-killed":
                self._replace(planned, primary, primary.kill, lambda: self._restart(primary, hold_s))
            case "primary-frozen":
                self._replace(planned, primary, primary.pause, lambda: self._resume(primary, hold_s))
            case "flushall":
                with self._log.during(planned, outage=True, loses="all"), primary.client() as client:
                    client.flushall()
            case "script-flush":
                with self._log.during(planned), primary.client() as client:
                    client.script_flush()
            case name:
                raise AssertionError(f"no such fault: {name}")
        self._await_order()
        self._home = self._sentinels.primary

    def _replace(
        self, planned: Planned, primary: RedisServer, end: Callable[[], object], revive: Callable[[], object]
    ) -> None:
        """Replace a primary; `revive` brings it back."""
        replicas = self._sentinels.replicas
        started = time.monotonic()
        end()
        successor, promoted_at = _await_promotion(replicas)
        successor.options.pop("replicaof", None)
        primary.options["replicaof"] = f"127.0.0.1 {successor.port}"
        stray_from = started if primary.is_running else time.monotonic()
        revive()
        await_true(lambda: _has_no_replica(primary), "its replicas have left the old primary", ignore=redis.RedisError)
        settled = time.monotonic()
        strays: dict[str, Any] = {"strays": _WRITERS, "stray_from": stray_from, "stray_until": settled}
        self._log.add(planned, started, promoted_at, outage=True, loses="tail", **strays)
        self._log.add(planned, promoted_at, settled, outage=True, detail="both go on")
        await_true(
            lambda: _role(primary) == "slave",
            "the old primary is a replica",
            ignore=redis.RedisError,
            timeout_s=PATIENCE_S,
        )

    def _restart(self, primary: RedisServer, hold_s: float) -> None:
        time.sleep(hold_s)
        primary.start()

    def _resume(self, primary: RedisServer, hold_s: float) -> None:
        time.sleep(hold_s)
        primary.resume()

    def _await_order(self) -> None:
        self._sentinels.await_healthy()
        await_true(lambda: not _refuses_writes(self._sentinels.primary), "writes work", ignore=redis.RedisError)

    def _check_home(self) -> None:
        """A failover that no fault asked for, because the machine was busy, would be taken for a violation."""
        assert self._sentinels.primary is self._home, "the primary changed without a fault: the machine is too busy"


def _role(server: RedisServer) -> str:
    with server.client(socket_timeout=5) as client:
        role: str = client.info("replication")["role"]
        return role


def _refuses_writes(server: RedisServer) -> bool:
    with server.client(socket_timeout=5) as client:
        info = client.info("replication")
        return info["role"] == "slave" or not info["min_slaves_good_slaves"]


def _has_no_replica(server: RedisServer) -> bool:
    with server.client(socket_timeout=5) as client:
        info = client.info("replication")
        return info["role"] == "slave" or not info["connected_slaves"]


def _await_promotion(replicas: list[RedisServer]) -> tuple[RedisServer, float]:
    """Return the replica that is the primary now, and the time."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for replica in replicas:
            # A sentinel ends the connections of a server that it changes.
            with contextlib.suppress(redis.ConnectionError):
                if _role(replica) == "master":
                    return replica, time.monotonic()
        assert time.monotonic() < deadline, "no replica was promoted"
        time.sleep(0.01)
