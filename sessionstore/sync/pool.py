"""The connection pool of a store for threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

import redis
from redis.exceptions import MaxConnectionsError

from ..errors import StoreClosedError
from ..options import CLOSED, StoreConfig
from ..transport import redis_internals
from ..transport.connect import client_options
from ..transport.driver import most_waiting
from .link import Link


def pool_settings(config: StoreConfig) -> dict[str, Any]:
    """Options of the pool and its connections: half of a call's deadline to get one, half to connect it."""
    return {**client_options(config.deadline_s), "timeout": config.deadline_s / 2}


class Pool(redis.ConnectionPool):
    """Lends each connection to one call at a time. If none is free, a call waits for at most `timeout` seconds.

    redis-py's pools take a connection back even if a KeyboardInterrupt ended its handshake. The next command would then
    read the answer to the handshake.
    """

    check_process = redis_internals.check_process
    #: how connections are made
    link: Link

    def __init__(self, *, timeout: float, **options: Any) -> None:
        self.timeout_s = timeout
        self._is_closed = False
        super().__init__(**options)

    def reset(self) -> None:
        """Begin without connections: at first, and in a forked process."""
        # One token for each connection that may be lent. A KeyboardInterrupt inside a semaphore, which is Python code,
        # could leave its lock locked for good.
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(self.max_connections):
            self._free.put(None)
        #: one token for each connection that may wait for replicas
        self._may_wait: SimpleQueue[None] = SimpleQueue()
        for _ in range(most_waiting(self)):
            self._may_wait.put(None)
        super().reset()
        #: whether an idle connection has received anything or has ended
        self._has_input: dict[Any, Callable[[], bool]] = {}
        self.idle = redis_internals.idle_connections(self)
        self.lent = redis_internals.lent_connections(self)
        self.lock = redis_internals.pool_lock(self)

    def close_inherited(self) -> None:
        """Close the sockets that a forked process inherited, and begin anew; the parent keeps its own."""
        for connection in (*self.idle, *self.lent):
            connection.disconnect()
        redis_internals.replace_locks(self)
        self.reset()

    def make_connection(self) -> Any:
        """Make a connection. Each time it connects, it asks its server who it is."""
        connection: Any = super().make_connection()
        connection.register_connect_callback(self.link.identify)
        connection.register_connect_callback(self._connected)
        return connection

    def _connected(self, connection: Any) -> None:
        self._has_input[connection] = redis_internals.input_check(connection)

    def get_connection(
        self, command_name: Any = None, *keys: Any, within_s: float | None = None, **options: Any
    ) -> Any:
        """Lend a connection that is ready for a command; connecting it takes at most `within_s` seconds."""
        self.check_process()
        try:
            self._free.get(timeout=self.timeout_s)
        except Empty:
            raise MaxConnectionsError from None
        connection: Any = None
        try:
            with self.lock:
                connection = self.idle.pop() if self.idle else self.make_connection()
                self.lent.add(connection)
                if self._is_closed:
                    raise StoreClosedError(CLOSED)
            # Connect again if Redis has closed the connection, or if it holds an answer to no command.
            if connection.is_connected and (connection.should_reconnect() or self._has_input[connection]()):
                connection.disconnect()
            if not connection.is_connected:
                self.link.connect(connection, 2 * self.timeout_s if within_s is None else within_s)
        except BaseException:
            if connection is None:
                self._free.put(None)
            else:
                connection.disconnect()
                self.release(connection)
            raise
        return connection

    @contextmanager
    def lend_to_wait(self, within_s: float) -> Iterator[Any]:
        """Lend a connection to a write that waits for replicas. It is closed after an exception."""
        self.check_process()
        tokens = self._may_wait
        try:
            tokens.get(timeout=min(self.timeout_s, within_s))
        except Empty:
            raise MaxConnectionsError from None
        try:
            connection = self.get_connection(within_s=within_s)
            try:
                yield connection
            except BaseException:
                connection.disconnect()
                raise
            finally:
                self.release(connection)
        finally:
            tokens.put(None)

    def get_idle_connection(self) -> Any | None:
        """Lend a connection that is already connected, without waiting; None if all are lent or disconnected."""
        self.check_process()
        try:
            self._free.get_nowait()
        except Empty:
            return None
        connection: Any = None
        with self.lock:
            if self.idle and self.idle[-1].is_connected:
                connection = self.idle.pop()
                self.lent.add(connection)
        if connection is None:
            self._free.put(None)
        elif connection.should_reconnect() or self._has_input[connection]():
            connection.disconnect()
            self.release(connection)
            connection = None
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        self.check_process()
        with self.lock:
            if connection.pid != self.pid or connection not in self.lent:
                return  # it was lent before a fork
            self.lent.remove(connection)
            self.idle.append(connection)
            is_closed = self._is_closed
        if is_closed:
            connection.disconnect()
        self._free.put(None)

    def disconnect_idle(self) -> None:
        """Have each idle connection connect anew when it is lent."""
        with self.lock:
            for connection in self.idle:
                connection.disconnect()

    def close(self) -> None:
        """Close for good: lent connections break, and `release` closes them."""
        with self.lock:
            self._is_closed = True
            idle, lent = tuple(self.idle), tuple(self.lent)
        for connection in idle:
            connection.disconnect()
        for connection in lent:
            redis_internals.shut_down(connection)


def pool_of_route(pool: Pool) -> Pool:
    """A pool like this one, for one more route."""
    return Pool(
        connection_class=pool.connection_class,
        max_connections=pool.max_connections,
        timeout=pool.timeout_s,
        **pool.connection_kwargs,
    )
