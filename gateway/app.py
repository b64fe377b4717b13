"""The gateway as an ASGI app: Starlette's router, within a boundary that answers every request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Iterable, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route, Router
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
from .errors import NOT_HTTP, RETRY_AFTER_S, STATUS, RefusedError, RequestError, error_body, new_request_id
from .limits import RateLimiter
from .logs import with_cause
from .metrics import Metrics
from .record import Record, Write
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
) -> Boundary:
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
    return Boundary(routes, metrics, access_log=access_log)


def create_metrics_app(metrics: Metrics) -> Boundary:
    """Build an app that serves ``/metrics`` only, for a port of its own."""
    # Scrapes are neither counted nor logged there.
    return Boundary([open_endpoint("/metrics", GET=metrics.read_metrics).route()], Metrics(), access_log=False)


def serve_by_port(app: ASGIApp, others: Mapping[int, ASGIApp]) -> ASGIApp:
    """Serve `app`, and other apps on ports of their own."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await others.get(scope["server"][1], app)(scope, receive, send)

    return serve


class Boundary:
    """Serves routes. It gives every request an id, a log line, metrics, and an answer if it fails."""

    def __init__(self, routes: list[Route], metrics: Metrics, *, access_log: bool) -> None:
        self.routes = routes
        self._router = Router(routes, redirect_slashes=False, default=_refuse_path)
        self._metrics = metrics
        self._access_log = access_log
        #: corrupt sessions that the log has named
        self._told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        received = _join_lines(scope["headers"])
        request_id = received.get("x-request-id", "")
        if not _REQUEST_ID.match(request_id):
            request_id = new_request_id()
        record = scope["gateway.record"] = Record(request_id, scope["method"], received)
        record.added["x-request-id"] = request_id
        # Routes match the path as it was sent: once decoded, a slash in a session key looks like any other.
        scope["path"] = _AUTHORITY.sub("", scope["raw_path"].decode("latin-1"), count=1)

        if "transfer-encoding" in received and "content-length" in received:
            # A proxy may have gone by the length, and taken the rest of the body for another request (RFC 9112, 6.1).
            record.added["connection"] = "close"

        async def send_with_id(message: Message) -> None:
            begins = message["type"] == "http.response.start"
            if begins:
                message["headers"] += [(name.encode(), value.encode()) for name, value in record.added.items()]
            # The server reads the next request within this call, and may refuse it.
            with contextlib.suppress(RefusedError):
                await send(message)
            if begins:
                # Not before: a client that reads nothing delays it, and a request that ends meanwhile has no response.
                record.status = message["status"]

        try:
            if not _HOST.match(received.get("host", "")):
                record.added["connection"] = "close"
                raise RequestError("bad_request", NOT_HTTP)
            await self._router(scope, receive, send_with_id)
        except ClientDisconnect:
            record.status = 499
        except asyncio.CancelledError:
            # The server stops, and the grace period is over. Answer the client, and end the task.
            reads = scope["method"] in ("GET", "HEAD")
            stopping = StoreUnavailableError(_STOPPING) if reads else OutcomeUnknownError(_STOPPING_WRITE)
            await _answer_error(stopping, scope, receive, send_with_id)
        except Exception as exc:
            await _answer_error(exc, scope, receive, send_with_id)
        finally:
            self._metrics.answered(record)
            self._tell_corrupt(record)
            if self._access_log:
                _log_access(record)
            # A write with a lost answer may have been applied. A refused one was not.
            if record.write is not None and not 300 <= record.status < 500 and audit.isEnabledFor(logging.INFO):
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


def _join_lines(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Read a request's headers; the values of several lines are joined."""
    received: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        received[name] = f"{received[name]},{value}" if name in received else value
    return received


async def _refuse_path(scope: Scope, receive: Receive, send: Send) -> None:
    sentence = f"No route has this path. GET {BASE_PATH}/openapi.json lists them; send a '/' in a session key as %2F."
    if scope["path"].startswith(f"{BASE_PATH}/sessions/"):
        sentence += " If you did, a proxy in front of the gateway decodes it; let it pass the path on unchanged."
    raise RequestError("not_found", sentence)


async def _answer_error(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the API's envelope. An error's details go to the log only.

    If the response has begun, the server cuts it off.
    """
    record: Record = scope["gateway.record"]
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
    if not record.status:
        body = error_body(code, sentence)
        await Response(body, STATUS[code], headers, media_type="application/json")(scope, receive, send)


def _log_access(record: Record) -> None:
    took_ms = round((time.perf_counter() - record.started_s) * 1000, 2)
    _log(access, "request", record, method=record.method, route=record.route, ms=took_ms)


def _log_write(record: Record, write: Write, client: tuple[str, int] | None) -> None:
    _log(
        audit,
        "write",
        record,
        client=client[0] if client else None,
        operation=write.operation,
        project=write.project,
        environment=write.environment,
        sessionKey=write.session_key,
        revision=write.revision,
    )


def _log(logger: logging.Logger, message: str, record: Record, **fields: object) -> None:
    outcome = {"status": record.status, "code": record.code}
    key_id = record.api_key.id if record.api_key else None
    logger.info(message, extra={"fields": {"requestId": record.request_id, "keyId": key_id, **fields, **outcome}})
