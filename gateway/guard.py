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
- A response that the server makes by itself becomes the API's error envelope.
- The last response arrives: a close begins with half of it, and the guard reads on for `LINGER_S`, because closing
  while the client sends resets the connection (RFC 9112, 9.6).

Heads, trailers and chunk lines are bounded by h11 itself (`MAX_HEAD_BYTES`), and bodies by the app.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ARRIVAL_S, NOT_HTTP, SERVER_FAILED, TOO_MANY_CONNECTIONS, TOO_SLOW, new_request_id, refusal

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
        for guard in tuple(self.guards):
            guard.transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._lost()
        for guard in tuple(self.guards):
            guard.transport.abort()
        await self._lost()

    async def _lost(self) -> None:
        while self.guards:  # noqa: ASYNC110  the loop calls `connection_lost`
            await asyncio.sleep(0.01)


def guarded(stock: type[asyncio.Protocol], neighbours: Neighbours) -> type[asyncio.Protocol]:
    """Make a factory for Uvicorn's ``http=``. It makes protocols of class `stock`, each within a guard."""

    def make(**arguments: Any) -> Guard:
        return Guard(stock(**arguments), neighbours, asyncio.get_running_loop())

    return cast("type[asyncio.Protocol]", make)  # Uvicorn only calls it


class _RefusedError(Exception):
    """The guard has refused the request, so the stock protocol must not go on: h11 fails if it refuses a HEAD."""


def shielded(app: ASGIApp) -> ASGIApp:
    """Keep from the app what happens to the next request, which the stock protocol reads within the app's last send."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_message(message: Message) -> None:
            with contextlib.suppress(_RefusedError):
                await send(message)

        await app(scope, receive, send_message)

    return serve


class Guard(asyncio.BufferedProtocol, asyncio.Transport):
    """One connection."""

    transport: asyncio.Transport
    _timer: asyncio.TimerHandle

    def __init__(self, stock: Any, neighbours: Neighbours, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._stock = stock
        self._http: h11.Connection = stock.conn
        self._neighbours = neighbours
        self._loop = loop
        #: the stock protocol wants bytes
        self._wanted = True
        #: a request has begun to arrive; `_since` is when it did, or when the client became idle or was cut off
        self._begun = False
        self._since = loop.time()
        #: bytes written, bytes that left the buffer by the last look, and when that number last grew
        self._written = 0
        self._sent = 0
        self._sent_at = self._since
        #: the guard has answered in place of the stock protocol, whose further output is dropped
        self._answered = False
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
        if over < 0:
            self._stock.connection_made(self)
            return
        self._closing = True
        if over < MAX_TURNED_AWAY:
            self._answer("too_many_connections", TOO_MANY_CONNECTIONS)
            self._finish()
        else:
            self.transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Bound one read. The loop hands each over before the next one, so all connections share the buffer."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.data_received(bytes(_BUFFER[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Pass on what has arrived; after the end, drop it."""
        if self._closing:
            return
        if not self._begun:
            self._begun, self._since = True, self._loop.time()
        before = self._http.their_state
        try:
            self._stock.data_received(data)
        except h11.LocalProtocolError:
            # The rest of a body is malformed, and its request is answered already.
            self.close()
            return
        except _RefusedError:
            return
        after = self._http.their_state
        if after not in _NEEDS_BYTES or (before is h11.SEND_BODY and after is h11.IDLE):
            self._begun = False
        self._steer()

    def eof_received(self) -> None:
        """Close: the guard reads only where the client owes bytes, so no whole request waits for an answer."""

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
        if not self._closing:
            self._closing = True
            # Without the error: given one, Uvicorn leaves its keep-alive timer running.
            self._stock.connection_lost(None)

    # To the stock protocol: a transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the socket's addresses."""
        return self.transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether writing is pointless."""
        return self._closing or self.transport.is_closing()

    def pause_reading(self) -> None:
        """Stop reading: the stock protocol holds enough."""
        self._wanted = False
        self._steer()

    def resume_reading(self) -> None:
        """Read again, if h11 needs bytes."""
        self._wanted = True
        self._steer()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send output of the stock protocol; a response without the app's ``x-request-id`` is the server's own."""
        output = bytes(data)
        if self._closing or self._answered:
            return
        if output.startswith(b"HTTP/1.1 ") and output[9:10] != b"1" and b"\r\nx-request-id: " not in output:
            if output[9:10] == b"4":
                self._answer("bad_request", NOT_HTTP)
                self.close()
                raise _RefusedError
            self._answer("internal_error", SERVER_FAILED)
            return
        self._written += len(output)
        self.transport.write(output)
        # When the stock protocol has done what it is doing, h11 may need bytes again.
        self._loop.call_soon(self._steer)

    def close(self) -> None:
        """End the connection; the client may still be sending."""
        if self._closing:
            return
        self._closing = True
        # At once, so that the app's part of a broken request ends before it does anything.
        self._stock.connection_lost(None)
        self._finish()

    def _answer(self, code: str, sentence: str) -> None:
        self._answered = True
        request_id = new_request_id()
        log.warning("A connection was refused: %s", sentence, extra={"fields": {"requestId": request_id}})
        self._neighbours.on_refusal(code)
        # The request in progress; one whose head is not whole has no method yet.
        cycle = self._stock.cycle
        to_head = cycle is not None and not cycle.response_complete and cycle.scope["method"] == "HEAD"
        self.transport.write(refusal(code, sentence, request_id, to_head=to_head))

    def _finish(self) -> None:
        self._since = self._loop.time()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.transport.resume_reading()
        else:
            self.transport.close()

    def _steer(self) -> None:
        """Read while h11 needs bytes, and the stock protocol takes them."""
        if self._closing:
            return
        if self._wanted and self._http.their_state in _NEEDS_BYTES:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def _look(self) -> None:
        """Hold the bounds of time."""
        now = self._loop.time()
        self._timer = self._loop.call_later(TICK_S, self._look)
        sent = self._written - self.transport.get_write_buffer_size()
        if sent > self._sent or sent == self._written:
            self._sent, self._sent_at = sent, now
        elif now - self._sent_at >= WRITE_S:
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
                self._answer("bad_request", TOO_SLOW)
            self.close()

    def _check_client(self) -> None:
        """Find out whether the client of a running request has disconnected: the guard does not read meanwhile."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), _HALF_CLOSED)
        events = poll.poll(0)
        if not events:
            return
        if events[0][1] & _GONE:
            self.transport.abort()
        elif not self._asked and self._http.our_state is h11.SEND_RESPONSE and self._http.their_http_version == b"1.1":
            self._asked = True
            self._written += len(_INTERIM)
            self.transport.write(_INTERIM)
