"""One primary, two replicas and three sentinels for tests, on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import redis

from .certificate import secure
from .polling import await_true
from .redis_server import RedisServer, Startable

__all__ = ["SERVICE", "RedisSentinels"]

#: The name under which the sentinels know the primary.
SERVICE = "sessions"
#: Milliseconds without an answer until a sentinel calls a server down, for tests that wait for a failover.
DOWN_AFTER_MS = 1000
#: The same for tests in which no server fails: a busy machine may not run a server for a second.
PATIENT_MS = 30_000
#: Milliseconds until a sentinel gives up a failover whose next step did not happen. It tries again after twice that.
_FAILOVER_TIMEOUT_MS = 5000
#: Milliseconds that a sentinel only watches after the machine did not run it for two seconds (TILT). Redis has 30,000,
#: in which no failover begins or goes on. It answers PING each second, so this is enough to see anew who is alive.
_TILT_MS = 2000
#: Sentinels make an old primary a replica after ten seconds.
READY_WITHIN_S = 60.0

_CONFIGURATION = f"""\
sentinel monitor {SERVICE} 127.0.0.1 %d 2
sentinel down-after-milliseconds {SERVICE} %d
sentinel failover-timeout {SERVICE} {_FAILOVER_TIMEOUT_MS}
sentinel parallel-syncs {SERVICE} 2
"""


class RedisSentinels(Startable):
    """Start it as a context manager. `options` are command-line options of each server, without dashes.

    With the file of a `certificate`, clients, servers and sentinels talk TLS only.
    """

    def __init__(
        self,
        replicas: int = 2,
        sentinels: int = 3,
        *,
        down_after_ms: int = DOWN_AFTER_MS,
        certificate: str | None = None,
        **options: str,
    ) -> None:
        def make(**more: str) -> RedisServer:
            every = {"repl_diskless_sync_delay": "0", **options, **more}
            return RedisServer(port=None, sentinel=None, certificate=certificate, **every)

        first = make()
        self.nodes = [first, *(make(replicaof=f"127.0.0.1 {first.port}") for _ in range(replicas))]
        configuration = _CONFIGURATION % (first.port, down_after_ms)
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
            with sentinel.client() as client:
                client.execute_command("SENTINEL", "DEBUG", "tilt-period", _TILT_MS)
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

        self._await(is_healthy, "the sentinels are ready")

    def fail_over(self) -> None:
        """Promote a replica in order, with SENTINEL FAILOVER; return when the sentinels name it."""
        before = self.primary

        def is_over() -> bool:
            state = client.sentinel_master(SERVICE)
            # Again after it gave up: the replica did not answer in time.
            if state["port"] == before.port and "failover_in_progress" not in state["flags"]:
                client.execute_command("SENTINEL", "FAILOVER", SERVICE)
            return self.primary is not before

        with self.sentinels[0].client(socket_timeout=5) as client:
            self._await(is_over, "the sentinels promote a replica in order")

    def start_again(self, dead: RedisServer) -> None:
        """Start a primary that was killed and replaced, as a replica.

        It has an old state on disk. As a primary, it would spread that before the sentinels make it a replica.
        """
        dead.options["replicaof"] = f"127.0.0.1 {self.primary.port}"
        dead.start()

    def await_promotion(self, before: RedisServer) -> None:
        """Return when the sentinels name another primary than `before`."""
        self._await(lambda: self.primary is not before, "the sentinels promote a replica")

    def last_words(self) -> str:
        """What sentinels and servers logged last."""
        named = [("Sentinel", one) for one in self.sentinels] + [("Server", one) for one in self.nodes]
        return "\n".join(f"{kind} {server.port}:\n{server.last_words()}\n" for kind, server in named)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """A failure of the block says what sentinels and servers logged last."""
        try:
            yield
        except AssertionError as exc:
            exc.add_note(self.last_words())
            raise

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        with self.heard():
            await_true(condition, what, ignore=redis.RedisError, timeout_s=READY_WITHIN_S)

    def close(self) -> None:
        for server in (*self.sentinels, *self.nodes):
            server.close()


def _replication(node: RedisServer) -> dict[str, Any]:
    with node.client(socket_timeout=5) as client:
        state: dict[str, Any] = client.info("replication")
        return state
