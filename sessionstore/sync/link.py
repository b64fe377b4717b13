"""How the connections of one route are made, for threads."""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import MaxConnectionsError, RedisError, ResponseError

from ..protocol.server_identity import IDENTIFY, ServerIdentity
from ..transport.connect import never_reconnect, new_connection
from ..transport.driver import info_without_answer
from ..transport.errors import FOREIGN_ERRORS
from ..transport.locator import Locator
from ..transport.topology import Address, Place, is_misrouted, must_move


class Link:
    """Connects to the primary that serves one hash tag, or to the fixed address of the pool.

    Parameters
    ----------
    pool : Pool
        Lends the connections for calls, and says how to connect.
    server : ServerIdentity
        Learns which server each connection for calls has reached.
    locator : Locator, optional
        Says where the primary is, if that may change.
    tag : str
        The hash tag.
    """

    def __init__(self, pool: Any, server: ServerIdentity, locator: Locator | None = None, tag: str = "") -> None:
        self.pool = pool
        pool.link = self
        self._server = server
        self._locator = locator
        self._place = None if locator is None else Place(locator, tag)

    @property
    def moves(self) -> bool:
        """Whether the primary may be elsewhere at the next connection."""
        return self._place is not None

    def doubt(self, error: Exception) -> None:
        """A connection was lost, or its server does not serve the tag."""
        if self._place is None or isinstance(error, MaxConnectionsError):
            return
        self._place.doubt(error, time.monotonic())
        if is_misrouted(error) and must_move(error):
            self.pool.disconnect_idle()

    def connect(self, connection: Any, within_s: float) -> None:
        """Connect one of the pool's connections."""
        try:
            if self._place is not None:
                until = time.monotonic() + within_s
                connection.host, connection.port = self._locate(within_s)
                # One half for the socket, and one for the handshake.
                half_s = max(0.001, (until - time.monotonic()) / 2)
                connection.socket_connect_timeout = connection.socket_timeout = half_s
            connection.connect()
        except FOREIGN_ERRORS as exc:
            self.doubt(exc)
            raise

    def open(self, within_s: float, address: Address | None = None) -> Any:
        """Make a connection for pub/sub or a check, which never reconnects by itself."""
        try:
            if address is None and self._place is not None:
                address = self._locate(within_s)
            connection = new_connection(self.pool, within_s, address)
            try:
                connection.connect()
                never_reconnect(connection)
                if self._place is not None:
                    self._place.check(_info(connection))
            except BaseException:
                connection.disconnect()
                raise
        except FOREIGN_ERRORS as exc:
            self.doubt(exc)
            raise
        return connection

    def primaries(self, within_s: float) -> list[Address | None]:
        """The address of each primary of the store, as it was last read; None: that of the pool.

        Each call also begins to read them anew, for the next one. It waits for that if none is known.
        """
        if self._locator is None:
            return [None]
        try:
            found = self._locator.primaries()
            self._locator.news_since(time.monotonic())
        except RedisError:
            self._await_news(time.monotonic(), within_s)
            found = self._locator.primaries()
        return [*found]

    def identify(self, connection: Any) -> None:
        """Ask a newly connected server who it is: another one may have lost the leases that a write counts."""
        info = _info(connection)
        if self._place is not None:
            self._place.check(info)
        self._server.observed(info, time.monotonic())

    def _locate(self, within_s: float) -> Address:
        assert self._place is not None
        named = self._place.take_named()
        if named is not None:
            return named
        self._await_news(self._place.doubted_at, within_s)
        return self._place.find()

    def _await_news(self, since: float, within_s: float) -> None:
        assert self._locator is not None
        until = time.monotonic() + within_s
        while (answer := self._locator.news_since(since)) is not None:
            answer.result(max(0.0, until - time.monotonic()))


def _info(connection: Any) -> Any:
    try:
        connection.send_command(*IDENTIFY)
        return connection.read_response()
    except ResponseError as exc:
        return info_without_answer(exc)
