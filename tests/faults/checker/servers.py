"""The Redis of a run: what all kinds of it have in common, and the single server.

Everything reaches Redis through relays, which can hold links, sever connections and lead to another server. Each view
process has its own relay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import redis
from msgspec import Struct

from ...support.redis_server import RedisServer
from .child import PROJECTS
from .history import Fault, Recorder
from .plan import KINDS, Kind, Planned
from .relay import SortingRelay

__all__ = ["Access", "FaultLog", "Servers", "SingleServer", "durable_server", "stop_for"]

#: Seconds that a failover or a replica's start may take.
PATIENCE_S = 60.0


class Access(Struct, frozen=True):
    """How a process reaches Redis."""

    urls: list[str]
    #: see `ChildSettings.remap`
    remap: str = ""


class FaultLog:
    """Records faults with their times."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def add(self, planned: Planned, started: float, ended: float, target: str = "", **fields: Any) -> None:
        """Record a fault that is over; `fields` are those of `Fault`."""
        self._recorder.add(Fault(kind=planned.kind.name, target=target, started=started, ended=ended, **fields))

    @contextlib.contextmanager
    def during(self, planned: Planned, target: str = "", **fields: Any) -> Iterator[None]:
        """Record a fault that lasts as long as the block."""
        started = time.monotonic()
        yield
        self.add(planned, started, time.monotonic(), target, **fields)


class Servers(Protocol):
    """The Redis of a run."""

    @property
    def projects(self) -> tuple[str, ...]:
        """The projects of the run."""

    @property
    def kinds(self) -> Sequence[Kind]:
        """The faults that can happen."""

    @property
    def url(self) -> str:
        """The URL for the gateways."""

    def start(self, folder: Path, log: FaultLog) -> None:
        """Start everything; `folder` takes files."""

    def close(self) -> None:
        """End everything."""

    def access(self, name: str) -> Access:
        """How the process of this name reaches Redis. Views have a relay each."""

    def relay(self, name: str) -> SortingRelay:
        """The relay of a process."""

    def client(self, project: str) -> redis.Redis:
        """A client of the server that has a project, without the library."""

    def ports(self) -> list[int]:
        """The ports of the servers that should answer now, to watch them."""

    def concerned(self, port: int) -> tuple[str, ...]:
        """The projects on the server of a port."""

    def do(self, planned: Planned, hold_s: float) -> None:
        """Cause a fault of the servers; return when it is over. `hold_s` is its duration."""

    def await_healthy(self) -> None:
        """Return when all servers are in order after faults."""


class SingleServer:
    """One Redis and its successors."""

    projects = PROJECTS[:1]
    kinds = KINDS

    def __init__(self) -> None:
        self._server = durable_server()
        self._front = SortingRelay(self._server.port)
        self._relays: dict[str, SortingRelay] = {}
        self._stack = contextlib.ExitStack()
        self._log: FaultLog

    @property
    def url(self) -> str:
        return self._front.url

    def start(self, folder: Path, log: FaultLog) -> None:
        self._log = log
        self._stack.callback(lambda: self._server.close())
        self._server.start()
        self._front.start()
        self._stack.callback(self._front.close)

    def close(self) -> None:
        self._stack.close()

    def access(self, name: str) -> Access:
        return Access([self.relay(name).url if name.startswith("view-") else self._front.url])

    def relay(self, name: str) -> SortingRelay:
        if name not in self._relays:
            self._relays[name] = SortingRelay(self._server.port).start()
            self._stack.callback(self._relays[name].close)
        return self._relays[name]

    def client(self, project: str) -> redis.Redis:
        return self._client()

    def ports(self) -> list[int]:
        return [self._front.port]

    def concerned(self, port: int) -> tuple[str, ...]:
        return self.projects

    def await_healthy(self) -> None:
        pass  # each of its faults ends in order

    def do(self, planned: Planned, hold_s: float) -> None:
        match planned.kind.name:
            case "redis-stopped":
                with self._log.during(planned, outage=True):
                    stop_for(self._server.pid, hold_s)
            case "redis-restarted":
                with self._log.during(planned, outage=True):
                    self._server.kill()
                    time.sleep(hold_s)
                    self._server.start()
            case "redis-emptied":
                with self._log.during(planned, outage=True, loses="all"):
                    self._server.kill()
                    shutil.rmtree(self._server.folder / "appendonlydir")
                    time.sleep(hold_s)
                    self._server.start()
            case "flushall":
                with self._client() as client, self._log.during(planned, loses="all", outage=True):
                    client.flushall()
            case "script-flush":
                with self._client() as client, self._log.during(planned):
                    client.script_flush()
            case "replica-promoted":
                self._promote(planned, hold_s)
            case "failover":
                self._fail_over(planned)
            case name:
                raise AssertionError(f"no such fault: {name}")

    def _promote(self, planned: Planned, lag_s: float) -> None:
        """Promote a replica that lags: the last writes are lost."""
        with self._new_replica() as (replica, link):
            link.hold()
            time.sleep(lag_s)
            with self._log.during(planned, outage=True, loses="tail"):
                self._lead_to(replica)
                self._server.kill()
                with replica.client(decode_responses=True) as client:
                    client.replicaof("NO", "ONE")
                self._take(replica)

    def _fail_over(self, planned: Planned) -> None:
        """Hand over to a replica by FAILOVER: nothing is lost."""
        with self._new_replica() as (replica, _), self._log.during(planned, outage=True), self._client() as client:
            client.execute_command("FAILOVER", "TO", "127.0.0.1", replica.port, "TIMEOUT", 5000)
            deadline = time.monotonic() + PATIENCE_S
            # The primary steps back before the replica takes over.
            with replica.client(decode_responses=True) as successor:
                while successor.info("replication")["role"] != "master":
                    assert time.monotonic() < deadline, "the failover did not finish"
                    time.sleep(0.005)
            self._lead_to(replica)
            self._server.kill()
            self._take(replica)

    @contextlib.contextmanager
    def _new_replica(self) -> Iterator[tuple[RedisServer, SortingRelay]]:
        """A replica that has caught up, and the relay of its replication link."""
        with contextlib.ExitStack() as stack:
            link = stack.enter_context(SortingRelay(self._server.port))
            replica = durable_server(replicaof=f"127.0.0.1 {link.port}")
            stack.callback(lambda: None if replica is self._server else replica.close())
            replica.start()
            deadline = time.monotonic() + PATIENCE_S
            with self._client() as client:
                while client.info("replication").get("slave0", {}).get("state") != "online":
                    assert time.monotonic() < deadline, "the replica did not catch up"
                    time.sleep(0.01)
            yield replica, link

    def _lead_to(self, server: RedisServer) -> None:
        """Switch all clients to another server, and break their connections."""
        for relay in (self._front, *self._relays.values()):
            relay.retarget(server.port)
            relay.cut()

    def _take(self, replica: RedisServer) -> None:
        """Continue with the replica as the primary."""
        old, self._server = self._server, replica
        del replica.options["replicaof"]
        old.close()

    def _client(self) -> redis.Redis:
        return self._server.client(decode_responses=True)


def durable_server(**options: str) -> RedisServer:
    """A server whose restart loses no answered write: Redis writes it to its file first, which SIGKILL spares.

    No fsync: it guards against a crash of the machine, and blocks Redis while the disk is busy.
    """
    return RedisServer(port=None, **DURABLE, **options)


#: The options of such a server.
DURABLE = {"appendonly": "yes", "appendfsync": "no", "repl_diskless_sync_delay": "0"}


def stop_for(pid: int, seconds: float) -> None:
    """Stop a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
