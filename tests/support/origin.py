"""A web server of an origin of its own: it records each request, and greets on a websocket."""

from __future__ import annotations

import base64
import hashlib
import http.server
import threading
from types import TracebackType
from typing import NamedTuple, Self

from sessionstore.session import SESSION_HEADER

__all__ = ["Origin"]

#: RFC 6455: what a server appends to the client's key.
_WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Seen(NamedTuple):
    """A request as it arrived."""

    method: str
    path: str
    session_key: str | None
    cookie: str | None
    body: str


class Origin(http.server.ThreadingHTTPServer):
    """Serves in a thread, as a context manager. ``/`` sets a cookie, ``/moved?URL`` redirects."""

    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The origin, without a slash at its end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def at(self, path: str) -> Seen:
        """The only request for a path."""
        [request] = [request for request in self.seen if request.path == path]
        return request

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Origin

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length).decode()
        cookie = self.headers.get("Cookie")
        self.server.seen.append(Seen(self.command, self.path, self.headers.get(SESSION_HEADER), cookie, body))
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self._greet(self.headers["Sec-WebSocket-Key"])
            return
        moved = self.path.partition("?")[2] if self.path.startswith("/moved?") else ""
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", moved)
        if self.path == "/":
            self.send_header("Set-Cookie", "basket=7; Path=/")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"OK")

    do_POST = do_OPTIONS = do_GET  # noqa: N815  the base class looks for these names

    def _greet(self, key: str) -> None:
        accept = base64.b64encode(hashlib.sha1((key + _WEBSOCKET_GUID).encode(), usedforsecurity=False).digest())
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept.decode())
        self.end_headers()
        self.wfile.write(b"\x81\x05hello" + b"\x88\x00")  # a text, then the end
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
