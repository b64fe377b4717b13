"""One request and its response, on bare ASGI messages.

Starlette's Request and Response cost more than all that the gateway does with a request; this reads what the API needs
and nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from msgspec import Struct

from sessionstore import Effect

from .auth import Principal
from .errors import BodyTooLargeError, Headers, new_request_id

__all__ = ["MAX_BODY_BYTES", "ClientGoneError", "Exchange", "Reply"]

#: Bytes of a request's body, at most.
MAX_BODY_BYTES = 64 * 1024

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: A request id that a client or a proxy in front may choose: it ends up in logs.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete: nobody is there to answer."""


class Reply(Struct, frozen=True, gc=False):
    """What a handler answers; `headers` are those besides the usual ones."""

    status: int
    body: bytes = b""
    headers: Headers = ()
    media_type: bytes = b"application/json"


class Exchange:
    """One request and its response.

    Attributes
    ----------
    headers : dict
        The request's headers, by name in lower case; of several with one name the last. See `header_values`.
    request_id : bytes
        The client's ``X-Request-Id`` where it is well-formed, else a new one.
    route : str
        The template of the route that matched, for logs: never what the client sent.
    principal : Principal or None
        Whose key it is, once that is known.
    status : int
        Of the response, once it was begun; else 0.
    error_code : str or None
        The code of the error that it was answered with.
    extra_headers : tuple
        What the response carries whatever it is.
    query : dict
        The query's parameters: only those that the route takes, each once.
    effect : Effect or None
        How the write took effect that the request asked for.
    """

    __slots__ = (
        "effect",
        "error_code",
        "extra_headers",
        "headers",
        "principal",
        "query",
        "receive",
        "request_id",
        "route",
        "scope",
        "send",
        "started_s",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.started_s = time.perf_counter()
        self.scope = scope
        self.receive = receive
        self.send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self.headers.get(b"x-request-id")
        if request_id is None or not _REQUEST_ID.match(request_id):
            request_id = new_request_id()
        self.request_id = request_id
        self.route = "unknown"
        self.principal: Principal | None = None
        self.status = 0
        self.error_code: str | None = None
        self.extra_headers: Headers = ()
        self.query: dict[str, str] = {}
        self.effect: Effect | None = None

    @property
    def method(self) -> str:
        """The request's method."""
        method: str = self.scope["method"]
        return method

    def header_values(self, name: bytes) -> bytes | None:
        """A header that is a list: the values of all its lines, joined; None where there is none."""
        if name not in self.headers:
            return None
        return b",".join(value for key, value in self.scope["headers"] if key == name)

    def single_header(self, name: bytes) -> bytes | None:
        """A header that is no list; lines that repeat it are joined, and so are nothing that it can be."""
        if len(self.headers) == len(self.scope["headers"]):
            return self.headers.get(name)
        return self.header_values(name)

    def path_segment(self, name: str) -> bytes:
        """A variable part of the path, percent-encoded as it was sent."""
        segment: str = self.scope["path_params"][name]
        return segment.encode("latin-1")

    async def read_body(self) -> bytes:
        """Read the whole body; stop as soon as it is too large, whatever length was declared.

        Raises
        ------
        BodyTooLargeError
        ClientGoneError
        """
        declared = self.headers.get(b"content-length", b"").lstrip(b"0") or b"0"
        if len(declared) > 18 or (declared.isdigit() and int(declared) > MAX_BODY_BYTES):
            raise _too_large()
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise _too_large()
            return body
        chunks = bytearray()
        while message["type"] == "http.request":
            chunks += message.get("body", b"")
            if len(chunks) > MAX_BODY_BYTES:
                raise _too_large()
            if not message.get("more_body", False):
                return bytes(chunks)
            message = await self.receive()
        raise ClientGoneError

    async def skip_body(self) -> None:
        """Read a body that means nothing, before anything is done: where it breaks off, nothing was.

        Raises
        ------
        ClientGoneError
        """
        if b"transfer-encoding" not in self.headers and self.headers.get(b"content-length", b"0") == b"0":
            return
        more = True
        while more:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            more = message.get("more_body", False)

    async def answer(self, reply: Reply) -> None:
        """Send the response, with the headers that each has."""
        self.status = reply.status
        headers = [(b"x-request-id", self.request_id), *self.extra_headers, *reply.headers]
        if reply.status != 304:
            headers += ((b"content-type", reply.media_type), (b"content-length", b"%d" % len(reply.body)))
        await self.send({"type": "http.response.start", "status": reply.status, "headers": headers})
        body = b"" if self.scope["method"] == "HEAD" else reply.body
        await self.send({"type": "http.response.body", "body": body})


def _too_large() -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is larger than {MAX_BODY_BYTES} bytes, the most that is taken.")
