"""The connection pool of a store for threads."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import redis
from redis.exceptions import MaxConnectionsError, RedisError

from ..errors import StoreClosedError
from ..options import CLOSED, StoreConfig
from ..transport.connect import client_options


def pool_settings(config: StoreConfig) -> dict[str, Any]:
    """Options of the pool and its connections: half of a call's deadline to get one, half to connect it."""
    return {**client_options(config.deadline_s), "timeout": config.deadline_s / 2}


class Pool(redis.ConnectionPool):
    """Lends each connection to one call at a time; a call that finds none waits, for `timeout` seconds at most.

    redis-py's pools put a connection back as it is when something other than an error of Redis ends its handshake, a
    KeyboardInterrupt say; the answer to the handshake would then be taken for that of the next command.
    """

    def __init__(self, *, timeout: float, **options: Any) -> None:
        self._timeout_s = timeout
        self._is_closed = False
        super().__init__(**options)

    def reset(self) -> None:
        """Begin anew, without connections: at first, and in a process that was forked off."""
        # A token for each connection that may be lent. Not a semaphore, which is made of Python code: an interrupt in
        # the midst of it can leave its lock locked for good.
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(self.max_connections):
            self._free.put(None)
        super().reset()

    def close_inherited(self) -> None:
        """Close the sockets that came along into a forked process, and begin anew; the other one keeps its own."""
        for connection in (*self._available_connections, *self._in_use_connections):
            connection.disconnect()
        # A thread that is not in this process may have held them.
        self._lock = threading.RLock()
        self._fork_lock = threading.RLock()
        self.reset()

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Lend a connection that is ready for a command."""
        self._checkpid()
        try:
            self._free.get(timeout=self._timeout_s)
        except Empty:
            raise MaxConnectionsError from None
        connection: Any = None
        try:
            with self._lock:
                connection = (
                    self._available_connections.pop() if self._available_connections else self.make_connection()
                )
                self._in_use_connections.add(connection)
                if self._is_closed:
                    raise StoreClosedError(CLOSED)
            # A connection that Redis has closed meanwhile, or that holds an answer nobody asked for, is made anew.
            if connection.is_connected and (connection.should_reconnect() or _is_stale(connection)):
                connection.disconnect()
            connection.connect()
        except BaseException:
            if connection is None:
                self._free.put(None)
            else:
                connection.disconnect()
                self.release(connection)
            raise
        return connection

    def get_idle_connection(self) -> Any | None:
        """Lend a connection that is connected already; None where there is none, and where one would have to wait."""
        self._checkpid()
        try:
            self._free.get_nowait()
        except Empty:
            return None
        connection: Any = None
        with self._lock:
            if self._available_connections and self._available_connections[-1].is_connected:
                connection = self._available_connections.pop()
                self._in_use_connections.add(connection)
        if connection is None:
            self._free.put(None)
        elif connection.should_reconnect() or _is_stale(connection):
            connection.disconnect()
            self.release(connection)
            connection = None
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        self._checkpid()
        with self._lock:
            if connection.pid != self.pid or connection not in self._in_use_connections:
                return  # it was lent before a fork
            self._in_use_connections.remove(connection)
            self._available_connections.append(connection)
            is_closed = self._is_closed
        if is_closed:
            connection.disconnect()
        self._free.put(None)

    def close(self) -> None:
        """End for good: connections that are lent break, and are closed by who gives them back."""
        with self._lock:
            self._is_closed = True
            idle, lent = tuple(self._available_connections), tuple(self._in_use_connections)
        for connection in idle:
            connection.disconnect()
        for connection in lent:
            # Not `disconnect`, which would take the parser from under the thread that reads.
            with suppress(AttributeError, OSError):
                connection._sock.shutdown(socket.SHUT_RDWR)


def _is_stale(connection: Any) -> bool:
    try:
        return bool(connection.can_read())
    except (RedisError, OSError):
        return True
