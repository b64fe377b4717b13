"""How the driver for threads receives what Redis publishes."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from ..transport import redis_internals
from ..transport.resp import ReplyParser

#: Bytes of one read: some hundred changes.
_READ_BYTES = 64 * 1024


class Receiver:
    """Receives the replies of one connection, from one thread."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket = redis_internals.socket_of(connection)
        self._parser = ReplyParser()

    def receive(self, within_s: float) -> list[Any]:
        """Wait up to `within_s` seconds, more than 0, until anything arrives; returns the replies that are complete.

        Raises
        ------
        redis.RedisError, OSError
            The connection has ended.
        """
        if self._socket is None:  # fakeredis
            arrived = self._connection.can_read(timeout=within_s)
            return [self._connection.read_response(timeout=within_s)] if arrived else []
        self._socket.settimeout(within_s)
        try:
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            return []
        if not data:
            raise RedisConnectionError("Connection closed by server.")
        return self._parser.feed(data)
