"""The gateway as an ASGI app: Starlette, with one middleware around its routes."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sessionstore import AsyncSessionStore
from sessionstore.errors import (
    CorruptSessionError,
    NotDurableError,
    NotEffectiveError,
    OutcomeUnknownError,
    SessionStoreError,
    StoreUnavailableError,
    TooFewViewsError,
)
from sessionstore.session import hash_session_key

from .auth import Authenticator
from .errors import NOT_HTTP, RETRY_AFTER_S, STATUS, RequestError, error_body, new_request_id
from .limits import RateLimiter
from .logs import with_cause
from .metrics import Metrics
from .record import Record, Write, record_of
from .routes import API, BASE_PATH, etag, open_endpoint, replicas_header, views_header

log = logging.getLogger("gateway")
access = logging.getLogger("gateway.access")
#: One line for each write. Off unless its level is set, because a line holds a session key.
audit = logging.getLogger("gateway.audit")
audit.setLevel(audit.level or logging.CRITICAL)

#: A request id that a client or a proxy may choose; it appears in logs.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_STOPPING = "The gateway is stopping; nothing was changed. Send the request again."
_STOPPING_WRITE = "The gateway is stopping; a session was changed whole or not at all. A PUT is safe to send again."
#: What a Host may hold (RFC 9112, 3.2; RFC 3986, 3.2.2). h11 checks that there is one.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*+)(?::[0-9]*+)?\Z")
#: Corrupt sessions that are remembered, so that each is logged once.
_MAX_TOLD = 1000
#: What comes before the path in the absolute form of a request target (RFC 9112, 3.2.2).
_AUTHORITY = re.compile(r"https?://[^/]*", re.IGNORECASE)


def create_app(
    store: AsyncSessionStore,
    authenticator: Authenticator,
    *,
    limiter: RateLimiter | None = None,
    metrics: Metrics | None = None,
    serve_metrics: bool = True,
    access_log: bool = True,
) -> Starlette:
    """Build the app. It opens and closes nothing: the store is the caller's.

    Parameters
    ----------
    store : AsyncSessionStore
        Holds the sessions.
    authenticator : Authenticator
        Knows the keys.
    limiter : RateLimiter, optional
        Counts the requests of each key; without it, requests are unlimited.
    metrics : Metrics, optional
        Counts requests and errors; by default the app makes its own.
    serve_metrics : bool
        Whether this app serves ``/metrics``; see `create_metrics_app`.
    access_log : bool
        Log one line for each request, to the logger ``gateway.access``.
    """
    metrics = metrics or Metrics()
    routes = API(store, authenticator, limiter, metrics).routes(with_metrics=serve_metrics)
    return _assemble(routes, metrics, access_log=access_log)


def create_metrics_app(metrics: Metrics) -> Starlette:
    """Build an app that serves ``/metrics`` only, for a port of its own."""
    # Scrapes are neither counted nor logged there.
    return _assemble([open_endpoint("/metrics", GET=metrics.read_metrics).route()], Metrics(), access_log=False)


def serve_by_port(app: ASGIApp, others: Mapping[int, ASGIApp]) -> ASGIApp:
    """Serve `app`, and other apps on ports of their own."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await others.get(scope["server"][1], app)(scope, receive, send)

    return serve


def _assemble(routes: list[Route], metrics: Metrics, *, access_log: bool) -> Starlette:
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Boundary, metrics=metrics, access_log=access_log)],
        exception_handlers={SessionStoreError: _answer_error, RequestError: _answer_error, 404: _answer_no_route},
    )
    app.router.redirect_slashes = False
    return app


class Boundary:
    """Gives every request an id, a log line, metrics, and an answer if the routes have none."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        #: corrupt sessions that the log has named
        self._told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_headers = Headers(scope=scope)
        request_id = request_headers.get("x-request-id", "")
        if not _REQUEST_ID.match(request_id):
            request_id = new_request_id()
        record = scope["gateway.record"] = Record(request_id, scope["method"])
        # Routes match the path as it was sent: once decoded, a slash in a session key looks like any other.
        scope["path"] = _AUTHORITY.sub("", scope["raw_path"].decode("latin-1"), count=1)

        # A proxy may have gone by the length, and taken the rest of the body for another request (RFC 9112, 6.1).
        doubtful = "transfer-encoding" in request_headers and "content-length" in request_headers

        async def send_with_id(message: Message) -> None:
            begins = message["type"] == "http.response.start"
            if begins:
                headers = MutableHeaders(scope=message)
                headers.update({"x-request-id": record.request_id, **record.limit_headers})
                if doubtful:
                    headers["connection"] = "close"
            await send(message)
            if begins:
                # Not before: a client that reads nothing delays it, and a request that ends meanwhile has no response.
                record.status = message["status"]

        try:
            if not _HOST.match(request_headers.get("host", "")):
                raise RequestError("bad_request", NOT_HTTP, {"connection": "close"})
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            record.status = 499
        except asyncio.CancelledError:
            # The server stops, and the grace period is over. Answer the client, and end the task.
            reads = scope["method"] in ("GET", "HEAD")
            stopping = StoreUnavailableError(_STOPPING) if reads else OutcomeUnknownError(_STOPPING_WRITE)
            await _answer_late(stopping, scope, receive, send_with_id)
        except Exception as exc:
            await _answer_late(exc, scope, receive, send_with_id)
        finally:
            self._metrics.answered(record)
            self._tell_corrupt(record)
            if self._access_log:
                _log_access(record)
            # A write with a lost answer may have been applied. A refused one was not.
            if record.write is not None and not 300 <= record.status < 500:
                _log_write(record, record.write, scope.get("client"))

    def _tell_corrupt(self, record: Record) -> None:
        """Log each corrupt session once, without its key."""
        for digest in map(hash_session_key, record.corrupt):
            if digest not in self._told:
                if len(self._told) >= _MAX_TOLD:
                    self._told.clear()
                self._told.add(digest)
                log.error(
                    "A session's record in Redis is corrupt; delete the session. The SHA-256 of its key begins with %s",
                    digest,
                    extra={"fields": {"requestId": record.request_id}},
                )


async def _answer_late(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer an error that no handler caught. If the response has begun, the server cuts it off."""
    request = Request(scope, receive)
    response = await _answer_error(request, error)
    if not record_of(request).status:
        await response(scope, receive, send)


async def _answer_no_route(request: Request, error: Exception) -> Response:
    sentence = f"No route has this path. Those of the API begin with {BASE_PATH}/sessions; send a '/' in a key as %2F."
    if request.scope["path"].startswith(f"{BASE_PATH}/sessions/"):
        sentence += " If you did, a proxy in front of the gateway decodes it; let it pass the path on unchanged."
    return await _answer_error(request, RequestError("not_found", sentence))


async def _answer_error(request: Request, error: Exception) -> Response:
    """Turn an error into the API's envelope. Its details go to the log only."""
    record = record_of(request)
    sentence = str(error)
    headers: Mapping[str, str] = {}
    code = "internal_error"
    if isinstance(error, RequestError):
        code, headers = error.code, error.headers
    elif isinstance(error, SessionStoreError) and error.code in STATUS:
        code = error.code
    fields = {"fields": {"requestId": record.request_id}}
    if isinstance(error, CorruptSessionError):
        record.corrupt = (error.session_key,)
    elif code == "internal_error":
        log.error("A request failed", exc_info=error, extra=fields)
        sentence = f"The gateway failed; its log says why, under the request id {record.request_id}."
    elif isinstance(error, StoreUnavailableError):
        log.warning("%s", with_cause(error), extra=fields)
        headers = {"retry-after": str(RETRY_AFTER_S)}
    record.code = code
    if isinstance(error, NotDurableError | NotEffectiveError | TooFewViewsError) and error.revision is not None:
        headers = {**headers, **etag(error.revision)}
        if record.write is not None:
            record.write.revision = error.revision
    if isinstance(error, TooFewViewsError):
        headers = {**headers, **views_header(error)}
    if isinstance(error, NotDurableError):
        headers = {**headers, **replicas_header(error)}
    body = error_body(code, sentence)
    return Response(body, STATUS[code], headers, media_type="application/json")


def _log_access(record: Record) -> None:
    access.info(
        "request",
        extra={
            "fields": {
                "requestId": record.request_id,
                "keyId": record.principal.key_id if record.principal else None,
                "method": record.method,
                "route": record.route,
                "status": record.status,
                "code": record.code,
                "ms": round((time.perf_counter() - record.started_s) * 1000, 2),
            }
        },
    )


def _log_write(record: Record, write: Write, client: tuple[str, int] | None) -> None:
    audit.info(
        "write",
        extra={
            "fields": {
                "requestId": record.request_id,
                "keyId": record.principal.key_id if record.principal else None,
                "client": client[0] if client else None,
                "operation": write.operation,
                "project": write.project,
                "environment": write.environment,
                "sessionKey": write.session_key,
                "revision": write.revision,
                "status": record.status,
                "code": record.code,
            }
        },
    )
