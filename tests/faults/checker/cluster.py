"""A real Redis Cluster for the checker: two projects on different shards, and the faults of clusters.

Every node announces the ports of two relays, for clients and for the other nodes. Views and library writers reach the
nodes through relays of their own. So the network can be parted between any of them.

**Lost histories.** The writes that a failover loses were made before the new primary took over. Later writes have to be
visible, so a loss ends when a replica says that it is the primary, long before all is in order again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from ...support.polling import await_true
from ...support.redis_cluster import RedisCluster
from ...support.redis_server import RedisServer, free_port
from .child import PROJECTS
from .plan import CLUSTER_KINDS, Planned
from .relay import SortingRelay
from .servers import DURABLE, PATIENCE_S, Access, FaultLog

__all__ = ["MAX_LAG_S", "NODE_TIMEOUT_MS", "ClusterServers"]

#: The settings on which the guarantee depends while a primary is cut off (docs/guarantees.md): it must stop serving
#: before a replica takes over.
NODE_TIMEOUT_MS = 3000
MAX_LAG_S = 1

_SLOTS = {project: key_slot(project.encode()) for project in PROJECTS}


class _Nodes(RedisCluster):
    """A cluster whose nodes announce the ports of relays, and connect from an address of their own."""

    def __init__(self, servers: ClusterServers) -> None:
        options = {
            **DURABLE,
            "cluster_node_timeout": str(NODE_TIMEOUT_MS),
            "min_replicas_to_write": "1",
            "min_replicas_max_lag": str(MAX_LAG_S),
            "cluster_announce_ip": "127.0.0.1",
        }
        super().__init__(3, 2, **options)
        self._servers = servers
        self._made = 0
        #: ports that were given to nodes: none is in use before its node starts
        self._taken: set[int] = set()

    def _make_node(self) -> RedisServer:
        self._made += 1
        port, bus_port = self._free_port(), self._free_port()
        announced = self._servers.lead_to(port)
        return RedisServer(
            port=port,
            cluster_port=str(bus_port),
            cluster_announce_port=str(announced),
            cluster_announce_bus_port=str(self._servers.bus.listen(bus_port)),
            bind_source_addr=f"127.0.0.{self._made + 1}",
            **self._options,
        )

    def _free_port(self) -> int:
        while (port := free_port()) in self._taken:
            pass
        self._taken.add(port)
        return port

    def _meet(self, node: RedisServer, other: RedisServer) -> None:
        ports = other.options["cluster_announce_port"], other.options["cluster_announce_bus_port"]
        with node.client() as client:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", *ports)


class ClusterServers:
    """Three primaries with two replicas each."""

    projects = PROJECTS
    kinds = CLUSTER_KINDS

    def __init__(self) -> None:
        #: for the gateways and the replicas; and for the nodes' own messages
        self.front = SortingRelay()
        self.bus = SortingRelay()
        self._relays: dict[str, SortingRelay] = {}
        self._cluster = _Nodes(self)
        #: the primary of each project, unless a fault is under way
        self._homes: dict[str, RedisServer] = {}
        self._stack = contextlib.ExitStack()
        self._folder: Path
        self._log: FaultLog

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.front.ports.values())

    def start(self, folder: Path, log: FaultLog) -> None:
        self._folder, self._log = folder, log
        for relay in (self.front, self.bus):
            self._stack.callback(relay.close)
            relay.start()
        self._stack.callback(self._cluster.close)
        self._cluster.start()
        self._await_order()
        self._homes = {project: self._primary_of(project) for project in PROJECTS}
        assert len(set(self._homes.values())) == len(PROJECTS), "the projects are on different shards"

    def close(self) -> None:
        self._stack.close()

    def access(self, name: str) -> Access:
        ports = self.relay(name).ports.values()
        return Access([f"redis://127.0.0.1:{port}" for port in ports], str(self._remap_of(name)))

    def relay(self, name: str) -> SortingRelay:
        if name not in self._relays:
            self._relays[name] = SortingRelay(*self.front.ports).start()
            self._stack.callback(self._relays[name].close)
            self._write_remap(name)
        return self._relays[name]

    def client(self, project: str) -> redis.Redis:
        return self._primary_of(project).client(decode_responses=True)

    def ports(self) -> list[int]:
        return [node.port for node in self._cluster.nodes]

    def concerned(self, port: int) -> tuple[str, ...]:
        return tuple(project for project, node in self._homes.items() if node.port == port)

    def await_healthy(self) -> None:
        self._await_order()
        self._check_homes()

    def lead_to(self, port: int) -> int:
        """Make way to one more node; returns the port that it announces."""
        announced = self.front.listen(port)
        for name, relay in self._relays.items():
            relay.listen(port)
            self._write_remap(name)
        return announced

    # Faults

    def do(self, planned: Planned, hold_s: float) -> None:
        self._check_homes()
        project = PROJECTS[planned.index % len(PROJECTS)]
        primary = self._homes[project]
        concerned = self.concerned(primary.port)
        match planned.kind.name:
            case "slot-migrated":
                self._migrate(planned, project, self._free_primary(), hold_s)
            case "resharded":
                self._reshard(planned)
            case "orderly-failover":
                with self._log.during(planned, outage=True, projects=concerned):
                    replicas = self._cluster.replicas_of(primary)
                    self._cluster.fail_over(replicas[planned.variant % len(replicas)])
                    self._await_order()
            case "primary-killed":
                self._lose(planned, primary, hold_s, lag_s=0.0)
            case "lagging-replica-promoted":
                self._lose(planned, primary, 0.0, lag_s=hold_s)
            case "primary-frozen":
                self._freeze(planned, primary, hold_s)
            case "primary-cut-off":
                self._cut_off(planned, primary, hold_s)
            case "node-added-and-removed":
                self._add_and_remove(planned, project, hold_s)
            case "redis-stopped":
                with self._log.during(planned, outage=True, projects=concerned):
                    primary.pause()
                    time.sleep(hold_s)
                    primary.resume()
            case "redis-restarted":
                with self._log.during(planned, outage=True, projects=concerned):
                    primary.kill()
                    time.sleep(hold_s)
                    primary.start()
                    self._await_order()
            case "redis-emptied":
                with self._log.during(planned, outage=True, loses="all", projects=concerned):
                    primary.kill()
                    shutil.rmtree(primary.folder / "appendonlydir")
                    time.sleep(hold_s)
                    primary.start()
                    self._await_order()
            case "flushall":
                with (
                    primary.client() as client,
                    self._log.during(planned, loses="all", outage=True, projects=concerned),
                ):
                    client.flushall()
            case "script-flush":
                with primary.client() as client, self._log.during(planned, projects=concerned):
                    client.script_flush()
            case name:
                raise AssertionError(f"no such fault: {name}")
        self._homes = {project: self._primary_of(project) for project in PROJECTS}

    def _migrate(self, planned: Planned, project: str, target: RedisServer, hold_s: float) -> None:
        """Move a slot by hand, key by key."""
        with self._log.during(planned, outage=True, projects=(project,)):
            self._cluster.migrate(_SLOTS[project], target, count=5, between=lambda: time.sleep(hold_s / 10))
            self._await_order()
        self._homes[project] = target

    def _reshard(self, planned: Planned) -> None:
        """Move the first slots of a shard by redis-cli."""
        program = shutil.which("redis-cli") or shutil.which("valkey-cli")
        assert program is not None, "redis-cli is not installed (Debian: apt-get install redis-tools)"
        counts = {project: self._slots_up_to(project) for project in PROJECTS}
        project = min(counts, key=lambda project: counts[project])
        source, target = self._homes[project], self._free_primary()
        command = [program, "--cluster", "reshard", f"127.0.0.1:{source.port}", "--cluster-yes"]
        command += ["--cluster-from", self._cluster.node_id(source), "--cluster-to", self._cluster.node_id(target)]
        command += ["--cluster-slots", str(counts[project] + planned.variant % 10)]
        with self._log.during(planned, outage=True, projects=self.concerned(source.port)):
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
            self._await_order()

    def _lose(self, planned: Planned, primary: RedisServer, hold_s: float, *, lag_s: float) -> None:
        """Kill a primary, whose replicas may lag; it comes back as a replica."""
        concerned = self.concerned(primary.port)
        replicas = self._cluster.replicas_of(primary)
        if lag_s:
            sources = {replica.options["bind_source_addr"] for replica in replicas}
            port = primary.port
            self.front.sever(lambda client, server: server == port and client in sources)
            time.sleep(lag_s)
        started = time.monotonic()
        primary.kill()
        promoted_at = _await_promotion(replicas)
        self._log.add(planned, started, promoted_at, outage=True, loses="tail", projects=concerned)
        self.front.mend()
        time.sleep(hold_s)
        primary.start()
        self._await_order()
        self._log.add(planned, promoted_at, time.monotonic(), detail="in order again", projects=concerned)

    def _freeze(self, planned: Planned, primary: RedisServer, hold_s: float) -> None:
        """Stop a primary for so long that a replica takes over; then let it go on."""
        concerned = self.concerned(primary.port)
        replicas = self._cluster.replicas_of(primary)
        started = time.monotonic()
        primary.pause()
        try:
            promoted_at = _await_promotion(replicas)
            time.sleep(hold_s)
        finally:
            resumed = time.monotonic()
            primary.resume()
        await_true(lambda: _role(primary) == "slave", "the old primary is a replica", ignore=redis.RedisError)
        # It may have run the requests that waited for it.
        strays: dict[str, Any] = {"strays": ("writer-",), "stray_from": resumed, "stray_until": time.monotonic()}
        self._log.add(planned, started, promoted_at, outage=True, loses="tail", projects=concerned, **strays)
        self._await_order()
        self._log.add(planned, promoted_at, time.monotonic(), detail="in order again", projects=concerned)

    def _cut_off(self, planned: Planned, primary: RedisServer, hold_s: float) -> None:
        """Part a primary, a view and a writer from everything else."""
        concerned = self.concerned(primary.port)
        replicas = self._cluster.replicas_of(primary)
        views = sorted(name for name in self._relays if name.startswith("view-"))
        writer = ("writer-sync", "writer-asyncio")[planned.variant % 2]
        view = views[planned.index // 2 % len(views)]
        port, bus_port = primary.port, int(primary.options["cluster_port"])
        source = primary.options["bind_source_addr"]
        started = time.monotonic()
        self.bus.sever(lambda client, server: source == client or server == bus_port)
        self.front.sever(lambda client, server: source == client or server == port)
        for name, relay in self._relays.items():
            inside = name in (view, writer)
            relay.sever(lambda _client, server, inside=inside: (server == port) is not inside)  # type: ignore[misc]
        promoted_at = _await_promotion(replicas)
        # Long enough for a write on the new primary to return.
        time.sleep(hold_s + 3.0)
        for relay in (self.bus, self.front, *self._relays.values()):
            relay.mend()
        # The writer was cut off from the other shards, too.
        self._log.add(planned, started, time.monotonic(), writer, outage=True)
        self._await_order()
        ended = time.monotonic()
        strays: dict[str, Any] = {"strays": (f"{writer}/",), "stray_from": started, "stray_until": ended}
        where = f"{view} and {writer}"
        self._log.add(
            planned, started, promoted_at, outage=True, loses="tail", projects=concerned, detail=where, **strays
        )
        self._log.add(planned, promoted_at, ended, detail="in order again", projects=concerned)

    def _add_and_remove(self, planned: Planned, project: str, hold_s: float) -> None:
        """Add a node, move a project to it and away again, and remove it."""
        with self._log.during(planned, detail="added", projects=(project,)):
            node = self._cluster.add_primary()
            with node.client() as client:
                client.config_set("min-replicas-to-write", 0)  # it has no replica
        home = self._homes[project]
        for target in (node, home):
            self._migrate(planned, project, target, hold_s)
            time.sleep(hold_s)
        self._cluster.remove(node)
        self._await_order()

    # What there is

    def _primary_of(self, project: str) -> RedisServer:
        return self._cluster.primary_of(_SLOTS[project])

    def _free_primary(self) -> RedisServer:
        """A primary without a project."""
        return next(
            node
            for slot in (5000, 10_000, 16_000)
            if (node := self._cluster.primary_of(slot)) not in self._homes.values()
        )

    def _slots_up_to(self, project: str) -> int:
        """How many slots have to be moved, from the first one on, to move a project's."""
        home = self._homes[project]
        with home.client() as client:
            client.response_callbacks.clear()
            ranges = client.execute_command("CLUSTER", "SLOTS")
        own = [entry for entry in ranges if entry[2][2].decode() == self._cluster.node_id(home)]
        return sum(max(0, min(last, _SLOTS[project]) - first + 1) for first, last, *_ in own)

    def _await_order(self) -> None:
        """Return when all nodes agree, and each primary takes writes."""

        def takes_writes() -> bool:
            for node in self._cluster.nodes:
                with node.client() as client:
                    info = client.info("replication")
                # A server without the setting does not count its replicas.
                if info["role"] == "master" and not info.get("min_slaves_good_slaves", 1):
                    return False
            return True

        self._cluster.await_healthy()
        await_true(takes_writes, "the primaries take writes", ignore=redis.RedisError)

    def _check_homes(self) -> None:
        """A failover that no fault asked for, because the machine was busy, would be taken for a violation."""
        moved = [project for project, node in self._homes.items() if self._primary_of(project) is not node]
        assert not moved, f"the primary of {', '.join(moved)} changed without a fault: the machine is too busy"

    # Relays

    def _remap_of(self, name: str) -> Path:
        return self._folder / f"{name}.remap"

    def _write_remap(self, name: str) -> None:
        ports = {str(announced): self._relays[name].ports[port] for port, announced in self.front.ports.items()}
        written = self._folder / f"{name}.remap.new"
        written.write_text(json.dumps(ports))
        written.replace(self._remap_of(name))


def _role(node: RedisServer) -> str:
    with node.client(socket_timeout=5) as client:
        role: str = client.info("replication")["role"]
        return role


def _await_promotion(replicas: Sequence[RedisServer]) -> float:
    """Return the time when one of the replicas is the primary."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for replica in replicas:
            if _role(replica) == "master":
                return time.monotonic()
        assert time.monotonic() < deadline, "no replica was promoted"
        time.sleep(0.01)
