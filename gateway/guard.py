"""Bounds on one connection, set around Uvicorn's own HTTP protocol by composition.

A `Guard` stands between the event loop and the stock protocol. To the event loop it is the protocol; to the stock
protocol it is the transport. h11, inside the stock protocol, does all parsing. The guard adds what a server that faces
hostile clients needs:

- Reading stops unless h11 needs bytes, and one read is small. So pipelined requests wait in the kernel, and a client
  that half-closes after a whole request still gets its answer.
- A request must arrive within `ARRIVAL_S`, from its first byte to the end of its body.
- A client must read: a connection whose output does not move for `WRITE_S` is cut off.
- If a client disconnects, the wait for its answer ends. A client that has half-closed looks the same until something is
  sent to it. So it gets an interim response, which every client ignores (RFC 9110, 15.2).
- The number of connections is bounded; a client over the limit gets 503.
- A request that the server refuses by itself gets the API's error envelope. The app answers for its own failures.
- The last response arrives: a close begins with half of it, and the guard reads on for `LINGER_S`, because closing
  while the client sends resets the connection (RFC 9112, 9.6).

Heads, trailers and chunk lines are bounded by h11 itself (`MAX_HEAD_BYTES`), and bodies by the app.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import h11

from .errors import ARRIVAL_S, NOT_HTTP, TOO_MANY_CONNECTIONS, TOO_SLOW, RefusedError, new_request_id, refusal

log = logging.getLogger("gateway")

#: Connections that are served at the same time.
DEFAULT_MAX_CONNECTIONS = 1000
#: Seconds without progress of the output.
WRITE_S = 60.0
#: Seconds that an idle connection stays open. Load balancers keep theirs for less, so none is closed as it is reused.
KEEP_ALIVE_S = 75
#: Seconds that a client has to read why its connection closes.
LINGER_S = 2.0
#: Seconds between two looks at the clock.
TICK_S = 1.0
#: Connections over the limit that get an answer at the same time; further ones are reset.
MAX_TURNED_AWAY = 100

#: Bytes of one read. h11 keeps what it does not need yet, so this and `MAX_HEAD_BYTES` bound a connection's input.
READ_BYTES = 16 * 1024
_BUFFER = memoryview(bytearray(READ_BYTES))

#: The client has closed its side (Linux tells), and the connection is gone.
_HALF_CLOSED = getattr(select, "POLLRDHUP", 0)
_GONE = select.POLLERR | select.POLLHUP
_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"

#: h11's states of a client that still has bytes to send.
_NEEDS_BYTES = (h11.IDLE, h11.SEND_BODY)


@dataclass(eq=False)
class Neighbours:
    """The connections of one server.

    Attributes
    ----------
    limit : int
        Connections that are served at the same time.
    on_refusal : callable
        Called with the error code of each answer that the app did not make.
    guards : set of Guard
        One for each open connection.
    """

    limit: int = DEFAULT_MAX_CONNECTIONS
    on_refusal: Callable[[str], object] = lambda code: None
    guards: set[Guard] = field(default_factory=set)

    async def aclose(self) -> None:
        """End the connections that are left when the server has stopped; what a client doesn't read soon is lost."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER_S
        for guard in self.guards:
            guard.transport.close()
        while self.guards:  # the loop calls `connection_lost`
            await asyncio.sleep(0.01)
            if loop.time() >= until:
                for guard in self.guards:
                    guard.transport.abort()


class Guard(asyncio.BufferedProtocol, asyncio.Transport):
    """One connection. Uvicorn makes it like its own protocol, of which `stock` is the class."""

    transport: asyncio.Transport
    _timer: asyncio.TimerHandle

    def __init__(self, stock: Callable[..., Any], neighbours: Neighbours, **arguments: Any) -> None:
        super().__init__()
        self._stock = stock(**arguments)
        self._http: h11.Connection = self._stock.conn
        self._loop: asyncio.AbstractEventLoop = self._stock.loop
        self._neighbours = neighbours
        #: a request has begun to arrive; `_since` is when it did, or when the client became idle or was cut off
        self._begun = False
        self._since = self._loop.time()
        #: bytes that the client has not taken since `_taken_at`; more may have been written
        self._untaken = 0
        self._taken_at = self._since
        #: the client was asked whether it is there still
        self._asked = False
        #: the stock protocol is done with this connection
        self._closing = False

    # To the event loop: a protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection if there is room for it."""
        self.transport = cast("asyncio.Transport", transport)
        self._timer = self._loop.call_later(TICK_S, self._look)
        over = len(self._neighbours.guards) - self._neighbours.limit
        self._neighbours.guards.add(self)
        self._stock.connection_made(self)
        if over >= MAX_TURNED_AWAY:
            self.transport.abort()
        elif over >= 0:
            self._refuse("too_many_connections", TOO_MANY_CONNECTIONS)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Bound one read. The loop hands each over before the next one, so all connections share the buffer."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what has arrived; after the end, drop it."""
        if self._closing:
            return
        if not self._begun:
            self._since = self._loop.time()
        before = self._http.their_state
        try:
            self._stock.data_received(bytes(_BUFFER[:nbytes]))
        except (RefusedError, h11.LocalProtocolError):
            # h11: the rest of a body is malformed, and its request is answered already.
            self.close()
            return
        after = self._http.their_state
        self._begun = after in _NEEDS_BYTES and not (before is h11.SEND_BODY and after is h11.IDLE)
        self.resume_reading()

    def pause_writing(self) -> None:
        """Tell the stock protocol that the client reads too slowly."""
        self._stock.pause_writing()

    def resume_writing(self) -> None:
        """Tell the stock protocol that the client reads again."""
        self._stock.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything."""
        self._neighbours.guards.discard(self)
        self._timer.cancel()
        self.close()

    # To the stock protocol: a transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the socket's addresses."""
        return self.transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether writing is pointless."""
        return self._closing or self.transport.is_closing()

    def resume_reading(self) -> None:
        """Read while h11 needs bytes and the stock protocol takes them, and after the end."""
        if self._closing or (self._http.their_state in _NEEDS_BYTES and not self._stock.flow.read_paused):
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    pause_reading = resume_reading

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send output of the stock protocol, unless it refuses what h11 has refused."""
        if self._http.their_state is h11.ERROR:
            self._refuse("bad_request", NOT_HTTP)
            # h11 fails if the stock protocol goes on to refuse a HEAD.
            raise RefusedError
        self._untaken += len(data)
        self.transport.write(data)
        # When the stock protocol has done what it is doing, h11 may need bytes again.
        self._loop.call_soon(self.resume_reading)

    def close(self) -> None:
        """End the connection; the client may still be sending."""
        if self._closing:
            return
        self._closing, self._since = True, self._loop.time()
        # At once, so that the app's part of a broken request ends before it does anything. Without an error: given one,
        # Uvicorn leaves its keep-alive timer running.
        self._stock.connection_lost(None)
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.resume_reading()

    def _refuse(self, code: str, sentence: str) -> None:
        """Answer in place of the app, and end the connection."""
        request_id = new_request_id()
        log.warning("A connection was refused: %s", sentence, extra={"fields": {"requestId": request_id}})
        self._neighbours.on_refusal(code)
        # The request in progress; one whose head is not whole has no method yet.
        cycle = self._stock.cycle
        to_head = cycle is not None and not cycle.response_complete and cycle.scope["method"] == "HEAD"
        self.transport.write(refusal(code, sentence, request_id, to_head=to_head))
        self.close()

    def _look(self) -> None:
        """Hold the bounds of time."""
        now = self._loop.time()
        self._timer = self._loop.call_later(TICK_S, self._look)
        untaken = self.transport.get_write_buffer_size()
        if untaken < self._untaken or not untaken:
            self._untaken, self._taken_at = untaken, now
        elif now - self._taken_at >= WRITE_S:
            self.transport.abort()
            return
        if self._closing:
            if now - self._since >= LINGER_S:
                self.transport.close()
        elif self._http.their_state not in _NEEDS_BYTES:
            self._since = now
            self._check_client()
        elif now - self._since >= (ARRIVAL_S if self._begun else KEEP_ALIVE_S):
            if self._begun and self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._refuse("bad_request", TOO_SLOW)
            self.close()

    def _check_client(self) -> None:
        """Find out whether the client of a running request has disconnected: the guard does not read meanwhile."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), _HALF_CLOSED)
        may_ask = self._http.our_state is h11.SEND_RESPONSE and self._http.their_http_version == b"1.1"
        for _, event in poll.poll(0):
            if event & _GONE:
                self.transport.abort()
            elif may_ask and not self._asked:
                self._asked = True
                self.write(_INTERIM)
