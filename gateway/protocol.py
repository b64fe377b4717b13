"""HTTP/1.1 as Uvicorn's httptools protocol speaks it, but for what that gets wrong.

- A request that offers an upgrade, to HTTP/2 say, as Java's client and ``curl --http2`` do, is one like any other:
  a server may ignore the offer (RFC 9110, 7.8). httptools stops at the end of such a head, and Uvicorn then takes the
  body for the next request. Here, the head is read once more without the offer.
- A head that does not end is refused, before it has taken up much memory, and so are trailers.
- Trailers are no headers (RFC 9110, 6.5.1); httptools tells of them as such.
- Requests that come before those before them are answered are not read without bound.
- A request that does not arrive whole in time is refused; Uvicorn bounds only the time between two requests.
- White space around a header's value is no part of it (RFC 9110, 5.5); httptools leaves it at the end.
- What is not HTTP is answered as the API answers; and the answer arrives, also where the client is still sending.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections import deque
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import NOT_HTTP, new_request_id, refusal

__all__ = ["ARRIVAL_S", "LINGER_S", "MAX_HEAD_BYTES", "Protocol"]

#: Bytes of a request's line and headers together; somewhat more pass where they arrive at once.
MAX_HEAD_BYTES = 64 * 1024

#: Seconds that a client has to read why it was refused. A connection that is closed while its client still sends is
#: reset, and a reset may cost it the answer (RFC 9112, 9.6).
LINGER_S = 2.0

#: Seconds that a request may take to arrive, from the connection or the request's first byte to the end of its body.
ARRIVAL_S = 60.0

_TOO_SLOW = f"The request did not arrive within {ARRIVAL_S:g} seconds."
_TOO_LARGE = f"The request's line and headers are larger than {MAX_HEAD_BYTES // 1024} KiB."

#: What an offer to change the protocol consists of, beside its ``Connection`` header's options.
_OFFER = (b"upgrade", b"http2-settings")


class _Flow(FlowControl):
    """Reads no further while requests wait to be answered: all that they need is there."""

    def __init__(self, transport: asyncio.Transport, waiting: deque[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """One connection."""

    #: bytes that have arrived since a head or a body last came on, without those that came together with it; None: no
    #: message has begun
    _idle_bytes: int | None = None
    _came_on = False
    _in_head = False
    #: when the message that is not whole yet began, or the connection; None: none has
    _arriving_since: float | None = None
    _arrival: TimerHandle | None = None
    #: whether this head offers an upgrade, and so is read once more
    _offers_upgrade = False
    #: the answer to what is no request, after which nothing is read any more; None: all were requests
    _refusal: bytes | None = None
    _lingering: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._arriving_since = self.loop.time()
        self._arrival = self.loop.call_later(ARRIVAL_S, self._look_at_arrival)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        if self._arriving_since is None:
            self._arriving_since = self.loop.time()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self.refuse(NOT_HTTP)
                    return
                data = self._head_without_offer() + data[upgrade.args[0] :]
                self._offers_upgrade = False
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                continue
            except httptools.HttpParserError:
                self.refuse(NOT_HTTP)
                return
            break
        if self._idle_bytes is not None:
            if not self._came_on:
                self._idle_bytes += len(data)
            self._came_on = False
            if self._idle_bytes > MAX_HEAD_BYTES:
                self.refuse(_TOO_LARGE)

    def refuse(self, sentence: str) -> None:
        """Answer 400, and close: nobody can tell where the next request begins."""
        request_id = new_request_id()
        fields = {"requestId": request_id.decode()}
        self.logger.warning("A request was refused before it was one: %s", sentence, extra={"fields": fields})
        self.refused()
        self._refusal = refusal(sentence, request_id)
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._send_refusal()
        elif cycle.more_body:
            # The fault is in the body of this request: no other answer to it may come.
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pipeline:
                self.pipeline.popleft()
            elif cycle.response_started:
                self.transport.close()
            else:
                self._send_refusal()
        # Where others are still being answered, it follows their answers.

    def refused(self) -> None:
        """Count a refusal, where there is somebody to count it."""

    def _look_at_arrival(self) -> None:
        since = self._arriving_since
        left_s = ARRIVAL_S if since is None else since + ARRIVAL_S - self.loop.time()
        if left_s > 0 or self._refusal is not None:
            self._arrival = self.loop.call_later(max(left_s, 1.0), self._look_at_arrival)
        elif self._idle_bytes is None:
            self.transport.close()  # not even a beginning
        else:
            self.refuse(_TOO_SLOW)

    def on_response_complete(self) -> None:
        """A request has been answered."""
        is_last = not self.pipeline
        super().on_response_complete()
        if self._refusal is not None and is_last:
            self._unset_keepalive_if_required()
            self._send_refusal()

    def _send_refusal(self) -> None:
        assert self._refusal is not None
        if self.transport.is_closing():
            return
        self.transport.write(self._refusal)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._lingering = self.loop.call_later(LINGER_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave nothing behind."""
        for timer in (self._lingering, self._arrival):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._idle_bytes = 0
        self._came_on = self._in_head = True
        if self._arriving_since is None:
            self._arriving_since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has been read, or a trailer."""
        if self._in_head:
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """A head ends."""
        self._idle_bytes = 0
        self._came_on = True
        self._in_head = False
        self._offers_upgrade = self.parser.should_upgrade()
        if not self._offers_upgrade:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body has been read."""
        self._idle_bytes = 0
        self._came_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body ends."""
        if not self._offers_upgrade:
            self._idle_bytes = self._arriving_since = None
        if not self._offers_upgrade:
            super().on_message_complete()

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name in _OFFER:
                continue
            if name == b"connection":
                options = [option for option in value.split(b",") if option.strip().lower() not in _OFFER]
                value = b",".join(options).strip()
                if not value:
                    continue
            lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
