"""How the connections of one route are made, for threads."""

from __future__ import annotations

import math
import time
from typing import Any

from redis.exceptions import MaxConnectionsError, ResponseError

from ..protocol.server_identity import IDENTIFY, ServerIdentity
from ..transport.connect import never_reconnect, new_connection
from ..transport.driver import info_without_answer
from ..transport.errors import FOREIGN_ERRORS
from ..transport.locator import Locator
from ..transport.topology import Place, is_misrouted, must_move


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

    def open(self, within_s: float) -> Any:
        """Make a connection for pub/sub, which never reconnects by itself."""
        try:
            connection = new_connection(self.pool, within_s, None if self._place is None else self._locate(within_s))
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

    def primaries(self, within_s: float) -> list[tuple[str, int] | None]:
        """The address of each primary of the store; None: that of the pool."""
        if self._locator is None:
            return [None]
        self._await_news(-math.inf, within_s)
        return [*self._locator.primaries()]

    def identify(self, connection: Any) -> None:
        """Ask a newly connected server who it is: another one may have lost the leases that a write counts."""
        info = _info(connection)
        if self._place is not None:
            self._place.check(info)
        self._server.observed(info, time.monotonic())

    def _locate(self, within_s: float) -> tuple[str, int]:
        assert self._place is not None
        assert self._locator is not None
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
