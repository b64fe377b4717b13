"""One primary with replicas for tests. Replication goes through relays, which can delay or stop it."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self
from unittest import mock

import redis

from sessionstore.transport import driver

from .polling import await_true
from .redis_server import RedisServer
from .relay import Relay

__all__ = ["Replication", "short_waits"]

#: A replica is in step within some 20 ms after a start.
_OPTIONS = {"repl_diskless_sync": "no", "hz": "500"}


def short_waits() -> Any:
    """Let Redis wait for replicas for a fiftieth of a call's deadline, which may be long: the machine may be busy."""
    return mock.patch.object(driver, "_WAITING_PART", 0.02)


class Replication:
    """Start it as a context manager.

    Parameters
    ----------
    replicas : int
        How many there are.
    delay_s : float
        Seconds that a write takes to each replica.
    """

    def __init__(self, replicas: int = 1, *, delay_s: float = 0.0) -> None:
        self.primary = RedisServer(port=None, sentinel=None, **_OPTIONS)
        self._delay_s = delay_s
        #: by replica, the way of its writes
        self.links: dict[RedisServer, Relay] = {}
        #: an address that leads to the primary, whichever it is
        self.front = Relay(self.primary.port)
        self._count = replicas
        self._stack = ExitStack()

    @property
    def replicas(self) -> list[RedisServer]:
        return list(self.links)

    @property
    def url(self) -> str:
        return self.front.url

    def await_in_step(self) -> None:
        """Return when every replica has what the primary has."""
        await_true(self._is_in_step, "the replicas are in step", ignore=redis.RedisError)

    def lose_primary(self, successor: RedisServer) -> None:
        """Kill the primary, with all that is on its way, and promote a replica. A new one takes its place."""
        dead, self.primary = self.primary, successor
        dead.kill()
        for link in self.links.values():
            link.disconnect()
        _ask(successor, "REPLICAOF", "NO", "ONE")
        self.front.target_port = successor.port
        self.links[dead] = self.links.pop(successor)
        for replica, link in self.links.items():
            link.target_port = successor.port
            if replica is dead:
                dead.options["replicaof"] = f"127.0.0.1 {link.port}"
                dead.start()
            else:
                # It would try again a second later; and the address that it has counts as no change.
                for port in (1, link.port):
                    _ask(replica, "REPLICAOF", "127.0.0.1", port)

    def _is_in_step(self) -> bool:
        with self.primary.client(socket_timeout=5) as client:
            info: dict[str, Any] = client.info("replication")
            if any(info.get(f"slave{number}", {}).get("state") != "online" for number in range(self._count)):
                return False
            # WAIT looks at what its own connection has replicated, so that is something.
            with client.pipeline(transaction=False) as pipeline:
                pipeline.publish("in-step", "").wait(self._count, 1000)
                return bool(pipeline.execute()[1] == self._count)

    def __enter__(self) -> Self:
        with self._stack as stack:
            # The servers end first: a replica that still runs would connect to a relay that ends.
            stack.enter_context(self.front)
            links = [stack.enter_context(Relay(self.primary.port, delay_s=self._delay_s)) for _ in range(self._count)]
            stack.callback(self.primary.close)
            self.primary.start()
            for link in links:
                replica = RedisServer(port=None, sentinel=None, replicaof=f"127.0.0.1 {link.port}", **_OPTIONS)
                stack.callback(replica.close)
                self.links[replica.start()] = link
            self.await_in_step()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


def _ask(server: RedisServer, *command: str | int) -> None:
    with server.client(socket_timeout=5) as client:
        client.execute_command(*command)
