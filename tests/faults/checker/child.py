"""The common part of the checker's processes: settings, orders, and the watch for stalls.

A child reads orders from standard input, one JSON object a line, and answers each with one line. It exits when its
input ends, so it never outlives its parent.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec
import redis
import redis.asyncio
from msgspec import Struct
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.cluster import ClusterNode
from redis.exceptions import RedisClusterException

from sessionstore import AsyncSessionStore, SessionStore
from sessionstore.options import StoreOptions

from .history import Recorder, Stall

__all__ = [
    "BRIEF",
    "KEYS",
    "MAIN",
    "PROJECTS",
    "TTL_S",
    "ChildSettings",
    "environment_of",
    "obey",
    "read_settings",
    "watch_for_stalls",
]

#: The projects. On a cluster of three shards, their slots are 0 and 5467: on different ones, and among their first, so
#: that a reshard need not move many others.
PROJECTS = ("checker-1787", "checker-215")
#: The environment whose sessions never expire during a run, and the one whose sessions do.
MAIN, BRIEF = "main", "brief"
#: Seconds that a session lives after it was last seen.
TTL_S = {MAIN: 24 * 3600.0, BRIEF: 1.0}
#: Few keys, so that writers and look-ups meet.
KEYS = {MAIN: tuple(f"m{n}" for n in range(10)), BRIEF: tuple(f"b{n}" for n in range(16))}

#: Seconds between two readings of the clock, and the gap that is recorded as a stall.
_WATCH_S = 0.02
_STALL_S = 0.1


class ChildSettings(Struct, frozen=True, kw_only=True):
    """A child's settings, as JSON on its command line."""

    name: str
    kind: str
    #: URLs of the stores, or of the gateways
    urls: list[str]
    projects: list[str]
    #: on a cluster, the file that leads from the port that a node announces to the port of this process's relay
    remap: str = ""
    seed: int
    lease_s: float
    deadline_s: float
    #: folder of the records
    path: str
    api_key: str = ""
    #: names of the gateways
    gateways: list[str] = []
    #: seconds between two writes of one task, on average; and the number of tasks
    pace_s: float = 0.05
    tasks: int = 4

    def options(self, environment: str) -> StoreOptions:
        """The store's options for one environment."""
        return {"ttl_s": TTL_S[environment], "lease_s": self.lease_s, "deadline_s": self.deadline_s}

    def store(self, environment: str) -> SessionStore:
        """Open the store for one environment of all projects."""
        if not self.remap:
            return SessionStore.from_url(self.urls[0], **self.options(environment))
        while True:
            try:
                nodes = [ClusterNode(*address) for address in self._addresses()]  # type: ignore[no-untyped-call]
                client = redis.RedisCluster(startup_nodes=nodes, address_remap=self._lead)
            except (redis.RedisError, RedisClusterException):
                time.sleep(0.05)  # the client for threads connects here, and a fault may be under way
            else:
                return SessionStore(client, **self.options(environment))

    def async_store(self, environment: str) -> AsyncSessionStore:
        """The same, for asyncio."""
        if not self.remap:
            return AsyncSessionStore.from_url(self.urls[0], **self.options(environment))
        nodes = [AsyncClusterNode(*address) for address in self._addresses()]
        client = redis.asyncio.RedisCluster(startup_nodes=nodes, address_remap=self._lead)
        return AsyncSessionStore(client, **self.options(environment))

    def _addresses(self) -> list[tuple[str, int]]:
        parts = map(urlsplit, self.urls)
        return [(part.hostname or "", part.port or 0) for part in parts]

    def _lead(self, address: tuple[str, int]) -> tuple[str, int]:
        """Lead from the address that a node announces to this process's relay."""
        ports: dict[str, int] = json.loads(Path(self.remap).read_text())
        return address[0], ports[str(address[1])]

    def recorder(self) -> Recorder:
        """The file of this process's records."""
        return Recorder(Path(self.path))


def read_settings() -> ChildSettings:
    """The settings of this process."""
    return msgspec.json.decode(sys.argv[1], type=ChildSettings)


def environment_of(key: str) -> str:
    """The environment of a key of `KEYS`."""
    return MAIN if key in KEYS[MAIN] else BRIEF


def obey(orders: dict[str, Callable[[dict[str, Any]], Any]]) -> None:
    """Carry out orders until the input ends; answer each with its result."""
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(orders[order["do"]](order)), flush=True)


def watch_for_stalls(name: str, recorder: Recorder) -> None:
    """Record stalls of this process, in the background."""

    def watch() -> NoReturn:
        last = time.monotonic()
        while True:
            time.sleep(_WATCH_S)
            now = time.monotonic()
            if now - last > _STALL_S:
                recorder.add(Stall(process=name, started=last, ended=now))
            last = now

    threading.Thread(target=watch, name="stalls", daemon=True).start()
