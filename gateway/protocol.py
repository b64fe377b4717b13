"""HTTP/1.1 as Uvicorn's httptools protocol speaks it, but for what that gets wrong.

- A request that offers an upgrade, to HTTP/2 say, as Java's client and ``curl --http2`` do, is one like any other:
  a server may ignore the offer (RFC 9110, 7.8). httptools stops at the end of such a head, and Uvicorn then takes the
  body for the next request. Here, the head is read once more without the offer.
- A head that does not end is refused, before it has taken up much memory.
- White space around a header's value is no part of it (RFC 9110, 5.5); httptools leaves it at the end.
- What is not HTTP is answered as the API answers; and the answer arrives, also where the client is still sending.
"""

from __future__ import annotations

from asyncio import TimerHandle

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import NOT_HTTP, refusal

__all__ = ["LINGER_S", "MAX_HEAD_BYTES", "Protocol"]

#: Bytes of a request's line and headers together; somewhat more pass where they arrive at once.
MAX_HEAD_BYTES = 64 * 1024

#: Seconds that a client has to read why it was refused. A connection that is closed while its client still sends is
#: reset, and a reset may cost it the answer (RFC 9112, 9.6).
LINGER_S = 2.0

_TOO_LARGE = f"The request's line and headers are larger than {MAX_HEAD_BYTES // 1024} KiB."

#: What an offer to change the protocol consists of, beside its ``Connection`` header's options.
_OFFER = (b"upgrade", b"http2-settings")


class Protocol(HttpToolsProtocol):
    """One connection."""

    #: bytes of a head that has not ended yet, without what came together with its first; None: there is none
    _head_bytes: int | None = None
    _head_is_new = False
    #: whether this head offers an upgrade, and so is read once more
    _offers_upgrade = False
    #: the answer to what is no request, after which nothing is read any more; None: all were requests
    _refusal: bytes | None = None
    _lingering: TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
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
        if self._head_bytes is not None:
            if not self._head_is_new:
                self._head_bytes += len(data)
            self._head_is_new = False
            if self._head_bytes > MAX_HEAD_BYTES:
                self.refuse(_TOO_LARGE)

    def refuse(self, sentence: str) -> None:
        """Answer 400, and close: nobody can tell where the next request begins."""
        self.logger.warning("A request was refused before it was one: %s", sentence)
        self._refusal = refusal(sentence)
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
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._head_bytes = 0
        self._head_is_new = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has been read."""
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """A head ends."""
        self._head_bytes = None
        self._offers_upgrade = self.parser.should_upgrade()
        if not self._offers_upgrade:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A body ends."""
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
