"""One primary, two replicas and three sentinels for tests, on free ports of the loopback interface."""

from __future__ import annotations

from typing import Any, Self

import redis

from .certificate import secure
from .polling import await_true
from .redis_server import RedisServer, Startable

__all__ = ["SERVICE", "RedisSentinels"]

#: The name under which the sentinels know the primary.
SERVICE = "sessions"
#: Milliseconds without an answer until a sentinel calls a server down.
DOWN_AFTER_MS = 1000
#: Sentinels make an old primary a replica after ten seconds. They rest for thirty when the machine stops them for two.
READY_WITHIN_S = 60.0

_CONFIGURATION = f"""\
sentinel monitor {SERVICE} 127.0.0.1 %d 2
sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}
sentinel failover-timeout {SERVICE} 2000
sentinel parallel-syncs {SERVICE} 2
"""


class RedisSentinels(Startable):
    """Start it as a context manager. `options` are command-line options of each server, without dashes.

    With the file of a `certificate`, clients, servers and sentinels talk TLS only.
    """

    def __init__(
        self, replicas: int = 2, sentinels: int = 3, *, certificate: str | None = None, **options: str
    ) -> None:
        def make(**more: str) -> RedisServer:
            every = {"repl_diskless_sync_delay": "0", **options, **more}
            return RedisServer(port=None, sentinel=None, certificate=certificate, **every)

        first = make()
        self.nodes = [first, *(make(replicaof=f"127.0.0.1 {first.port}") for _ in range(replicas))]
        configuration = _CONFIGURATION % first.port
        self.sentinels = [RedisServer(sentinel=configuration, certificate=certificate) for _ in range(sentinels)]
        self._certificate = certificate

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return secure(f"redis+sentinel://{hosts}/{SERVICE}", self._certificate)

    def client(self, **kwargs: Any) -> redis.Redis:
        """A plain client of the primary, to read and change data without the library."""
        return self.primary.client(**kwargs)

    @property
    def primary(self) -> RedisServer:
        """The server that most living sentinels call the primary."""
        ports: list[int] = []
        for sentinel in self.sentinels:
            if sentinel.is_running:
                with sentinel.client(socket_timeout=5) as client:
                    ports.append(int(client.sentinel_get_master_addr_by_name(SERVICE)[1]))
        port = max(set(ports), key=ports.count)
        return next(node for node in self.nodes if node.port == port)

    @property
    def replicas(self) -> list[RedisServer]:
        """The living servers that are not the primary."""
        primary = self.primary
        return [node for node in self.nodes if node is not primary and node.is_running]

    def start(self) -> Self:
        for node in self.nodes:
            node.start()
        for sentinel in self.sentinels:
            sentinel.start()
        self.await_healthy()
        return self

    def await_healthy(self) -> None:
        """Return when each living replica is in step and the sentinels can fail over."""

        def is_healthy() -> bool:
            primary = self.primary
            if not primary.is_running or _replication(primary)["role"] != "master":
                return False
            for node in self.replicas:
                state = _replication(node)
                if state["role"] != "slave" or state["master_port"] != primary.port:
                    return False
                if state["master_link_status"] != "up":
                    return False
            for sentinel in self.sentinels:
                if sentinel.is_running:
                    with sentinel.client(socket_timeout=5) as client:
                        state = client.sentinel_master(SERVICE)
                        others = sum(other.is_running for other in self.sentinels) - 1
                        if state["num-other-sentinels"] < others or state["num-slaves"] < len(self.replicas):
                            return False
                        # Each one, not most of them: the next failover needs their votes.
                        if state["port"] != primary.port or state["flags"] != "master":
                            return False
                        living = {node.port for node in self.replicas}
                        states = {state["port"]: state["flags"] for state in client.sentinel_slaves(SERVICE)}
                        if any(states.get(port) != "slave" for port in living):
                            return False
                        client.execute_command("SENTINEL", "CKQUORUM", SERVICE)
            return True

        await_true(is_healthy, "the sentinels are ready", ignore=redis.RedisError, timeout_s=READY_WITHIN_S)

    def fail_over(self) -> None:
        """Promote a replica in order, with SENTINEL FAILOVER; return when the sentinels name it."""
        before = self.primary
        with self.sentinels[0].client(socket_timeout=5) as client:
            client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        self.await_promotion(before)

    def start_again(self, dead: RedisServer) -> None:
        """Start a primary that was killed and replaced, as a replica.

        It has an old state on disk. As a primary, it would spread that before the sentinels make it a replica.
        """
        dead.options["replicaof"] = f"127.0.0.1 {self.primary.port}"
        dead.start()

    def await_promotion(self, before: RedisServer) -> None:
        """Return when the sentinels name another primary than `before`."""
        await_true(
            lambda: self.primary is not before,
            "the sentinels promote a replica",
            ignore=redis.RedisError,
            timeout_s=READY_WITHIN_S,
        )

    def close(self) -> None:
        for server in (*self.sentinels, *self.nodes):
            server.close()


def _replication(node: RedisServer) -> dict[str, Any]:
    with node.client(socket_timeout=5) as client:
        state: dict[str, Any] = client.info("replication")
        return state
