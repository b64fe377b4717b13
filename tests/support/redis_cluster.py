"""A real Redis Cluster for tests: three primaries with a replica each, on free ports of the loopback interface."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self

import redis

from .certificate import client_options, secure
from .polling import await_true
from .redis_server import RedisServer, Startable, free_port

__all__ = ["SLOTS", "RedisCluster"]

SLOTS = 16384

#: Milliseconds without an answer until the nodes of a cluster call one of them failed, unless an option says otherwise.
NODE_TIMEOUT_MS = 1000


class RedisCluster(Startable):
    """Start it as a context manager.

    Parameters
    ----------
    primaries, replicas : int
        How many primaries it has, and how many replicas each of them.
    certificate : str, optional
        The file of one: clients and nodes talk TLS only.
    options : str
        Command-line options of each server, without dashes.
    """

    def __init__(
        self, primaries: int = 3, replicas: int = 1, *, certificate: str | None = None, **options: str
    ) -> None:
        self._options = {
            "cluster_enabled": "yes",
            "cluster_node_timeout": str(NODE_TIMEOUT_MS),
            "cluster_require_full_coverage": "no",
            "cluster_allow_replica_migration": "no",
            "repl_diskless_sync_delay": "0",
            **options,
        }
        self._certificate = certificate
        self._primaries = primaries
        self._replicas = replicas
        #: Primaries first, then the replicas of each round. The roles change when a replica is promoted.
        self.nodes: list[RedisServer] = []
        self._ids: dict[str, RedisServer] = {}

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return secure(f"redis+cluster://{hosts}", self._certificate)

    def client(self, **kwargs: Any) -> redis.RedisCluster:
        """A plain client of the cluster, to read and change data without the library."""
        if self._certificate is not None:
            kwargs |= {"ssl": True, **client_options(self._certificate)}
        return redis.RedisCluster(host="127.0.0.1", port=self._living()[0].port, **kwargs)

    def start(self) -> Self:
        self.nodes += [self._make_node() for _ in range(self._primaries * (1 + self._replicas))]
        for node in self.nodes:
            node.start(await_ready=False)
        for node in self.nodes:
            node.await_ready()
        for number, primary in enumerate(self.nodes[: self._primaries]):
            first, last = (SLOTS * step // self._primaries for step in (number, number + 1))
            _ask(primary, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            _ask(primary, "CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        for number, node in enumerate(self.nodes):
            # Every node meets every other: gossip alone takes seconds to introduce them.
            for other in self.nodes[number + 1 :]:
                self._meet(node, other)
        ids = [self.node_id(node) for node in self.nodes]
        for number, replica in enumerate(self.nodes[self._primaries :]):
            await_true(
                partial(_ask, replica, "CLUSTER", "REPLICATE", ids[number % self._primaries]),
                "a node replicates",
                ignore=redis.RedisError,
            )
        self.await_healthy()
        return self

    def await_healthy(self) -> None:
        """Return when each living node knows all slots as served, and each living replica is in step."""

        def is_healthy() -> bool:
            for node in self._living():
                info = _ask(node, "CLUSTER", "INFO").decode()
                if "cluster_state:ok" not in info or f"cluster_slots_ok:{SLOTS}" not in info:
                    return False
                with node.client() as client:
                    replication: dict[str, Any] = client.info("replication")
                if replication["role"] == "slave" and replication["master_link_status"] != "up":
                    return False
            return True

        await_true(is_healthy, "the cluster is healthy", ignore=redis.RedisError)

    def node_id(self, node: RedisServer) -> str:
        """The cluster's name of a node."""
        for name, known in self._ids.items():
            if known is node:
                return name
        answer: bytes = _ask(node, "CLUSTER", "MYID")
        self._ids[answer.decode()] = node
        return answer.decode()

    def slot_of(self, key: str) -> int:
        """The slot of a key."""
        slot: int = _ask(self._living()[0], "CLUSTER", "KEYSLOT", key)
        return slot

    def primary_of(self, slot: int) -> RedisServer:
        """The node that serves a slot, as most living nodes see it."""
        names: list[str] = []
        for node in self._living():
            for first, last, primary, *_ in _ask(node, "CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    names.append(primary[2].decode())
        return self._ids[max(set(names), key=names.count)]

    def replicas_of(self, primary: RedisServer) -> list[RedisServer]:
        """The living replicas of a primary."""
        primary_id = self.node_id(primary)
        return [
            node
            for node in self._living()
            if node is not primary
            and any(
                "myself" in line and line.split()[3] == primary_id
                for line in _ask(node, "CLUSTER", "NODES").decode().splitlines()
            )
        ]

    def fail_over(self, replica: RedisServer) -> None:
        """Promote a replica in order, with CLUSTER FAILOVER; return when all living nodes know it."""
        for last in (False, False, True):
            _ask(replica, "CLUSTER", "FAILOVER")
            # Redis gives up an orderly failover after five seconds, as on a busy machine.
            with suppress(*[] if last else [AssertionError]):
                await_true(
                    lambda: self._all_see_as_primary(replica),
                    "a replica is promoted",
                    ignore=redis.RedisError,
                    timeout_s=6,
                )
                break
        self.await_healthy()

    def migrate(
        self, slot: int, target: RedisServer, *, count: int = 10, between: Callable[[], None] = lambda: None
    ) -> None:
        """Move one slot key by key, as a reshard does; `between` is called after each step."""
        source = self.primary_of(slot)
        if source is target:
            return
        source_id, target_id = self.node_id(source), self.node_id(target)
        _ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        _ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        between()
        while keys := _ask(source, "CLUSTER", "GETKEYSINSLOT", slot, count):
            _ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            between()
        for node in (target, source, *(node for node in self._living() if node not in (source, target))):
            if _role(node) == "master":
                _ask(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def add_primary(self) -> RedisServer:
        """Add a primary without slots."""
        node = self._make_node().start()
        for other in self._living():
            self._meet(node, other)
        self.nodes.append(node)
        self.node_id(node)
        self.await_healthy()
        return node

    def remove(self, node: RedisServer) -> None:
        """Remove a node without slots."""
        node_id = self.node_id(node)
        for other in self._living():
            if other is not node:
                _ask(other, "CLUSTER", "FORGET", node_id)
        self.nodes.remove(node)
        del self._ids[node_id]
        node.close()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _make_node(self) -> RedisServer:
        options = {"cluster_port": str(free_port()), **self._options}
        return RedisServer(port=None, sentinel=None, certificate=self._certificate, **options)

    def _meet(self, node: RedisServer, other: RedisServer) -> None:
        _ask(node, "CLUSTER", "MEET", "127.0.0.1", other.port, other.options["cluster_port"])

    def _all_see_as_primary(self, node: RedisServer) -> bool:
        return all(
            any(primary[2].decode() == self.node_id(node) for _, _, primary, *_ in _ask(other, "CLUSTER", "SLOTS"))
            for other in self._living()
        )

    def _living(self) -> list[RedisServer]:
        return [node for node in self.nodes if node.is_running]


def _role(node: RedisServer) -> str:
    role: bytes = _ask(node, "ROLE")[0]
    return role.decode()


def _ask(node: RedisServer, *command: Any) -> Any:
    """Run one command on a node, without redis-py's parsing of replies."""
    with node.client(retry=None, socket_timeout=5) as client:
        client.response_callbacks.clear()
        return client.execute_command(*command)
