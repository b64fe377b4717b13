"""The gateway as an ASGI app: Starlette's router, and one middleware around it."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.routing import Router

from sessionstore import AsyncSessionStore
from sessionstore.errors import SessionStoreError, StoreUnavailableError

from .auth import Authenticator
from .errors import STATUS, error_body, error_headers
from .exchange import ClientGoneError, Exchange, Receive, Reply, Scope, Send
from .limits import RateLimiter
from .logs import with_cause
from .metrics import Metrics
from .routes import API, open_route, unknown_route

__all__ = ["Boundary", "create_app", "create_metrics_app"]

log = logging.getLogger("gateway")
access = logging.getLogger("gateway.access")


def create_app(
    store: AsyncSessionStore,
    authenticator: Authenticator,
    *,
    limiter: RateLimiter | None = None,
    metrics: Metrics | None = None,
    serve_metrics: bool = True,
    access_log: bool = True,
) -> Boundary:
    """Build the app. It opens nothing and closes nothing: the store is the caller's.

    Parameters
    ----------
    store : AsyncSessionStore
        Where the sessions are.
    authenticator : Authenticator
        Knows the keys.
    limiter : RateLimiter, optional
        Counts the requests of each key; without it there is no limit.
    metrics : Metrics, optional
        Told of each request.
    serve_metrics : bool
        Whether ``/metrics`` is a route of this app; see `create_metrics_app`.
    access_log : bool
        Log one line for each request, to the logger ``gateway.access``.
    """
    routes = API(store, authenticator, limiter, metrics).routes(with_metrics=serve_metrics)
    router = Router(routes, redirect_slashes=False, default=unknown_route)
    return Boundary(router, metrics, access_log=access_log)


def create_metrics_app(metrics: Metrics) -> Boundary:
    """Build an app that has ``/metrics`` only, for a port of its own."""
    routes = [open_route("/metrics", GET=metrics.read_metrics)]
    return Boundary(Router(routes, redirect_slashes=False, default=unknown_route), access_log=False)


class Boundary:
    """What every request passes: its id, the envelope of errors, the access log, the metrics.

    Starlette's own error middlewares are not used: they answer in plain text, and cost as much as the rest.
    """

    def __init__(self, router: Router, metrics: Metrics | None = None, *, access_log: bool) -> None:
        self._router = router
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"The gateway speaks HTTP only, not {scope['type']!r}.")
        exchange = scope["exchange"] = Exchange(scope, receive, send)
        # The router sees the path as it was sent: once decoded, a slash inside a session key looks like any other.
        scope["path"] = scope["raw_path"].decode("latin-1")
        error: SessionStoreError | None = None
        try:
            await self._router(scope, receive, send)
        except SessionStoreError as exc:
            error = exc
            await _answer_error(exchange, exc)
        except ClientGoneError:
            exchange.status = 499
        except asyncio.CancelledError:
            # The server stops, and its grace is over. Whoever called is told; nobody else has to know.
            error = _stopped()
            await _answer_error(exchange, error)
        except Exception:
            log.exception("A request failed", extra={"fields": {"requestId": exchange.request_id.decode()}})
            await _answer_internal_error(exchange)
        finally:
            if self._metrics is not None:
                self._metrics.answered(exchange, error)
            if self._access_log:
                _log_access(exchange)
            # What refers to itself waits for the garbage collector, which is then a seventh of a request's cost: the
            # scope and its exchange, the error and the frame that its traceback names.
            del scope["exchange"], error


def _stopped() -> StoreUnavailableError:
    return StoreUnavailableError(
        "The gateway is stopping: a write may have been applied, whole or not at all; send it to another, or again."
    )


async def _answer_error(exchange: Exchange, error: SessionStoreError) -> None:
    if error.code not in STATUS or error.code == "internal_error":
        log.error("A request failed: %s", error, exc_info=error, extra=_fields(exchange))
        await _answer_internal_error(exchange)
        return
    if isinstance(error, StoreUnavailableError):
        log.warning("%s", with_cause(error), extra=_fields(exchange))
    exchange.error_code = error.code
    if exchange.status:
        return  # the answer has begun
    body = error_body(error.code, str(error))
    await exchange.answer(Reply(STATUS[error.code], body, error_headers(error)))


async def _answer_internal_error(exchange: Exchange) -> None:
    """Say only where to find what went wrong. A response that has begun can only be cut off, which the server does."""
    exchange.error_code = "internal_error"
    if exchange.status:
        return
    sentence = f"The gateway failed; its log says why under the request id {exchange.request_id.decode()}."
    await exchange.answer(Reply(STATUS["internal_error"], error_body("internal_error", sentence)))


def _fields(exchange: Exchange) -> dict[str, dict[str, str]]:
    return {"fields": {"requestId": exchange.request_id.decode()}}


def _log_access(exchange: Exchange) -> None:
    access.info(
        "request",
        extra={
            "fields": {
                "requestId": exchange.request_id.decode(),
                "keyId": exchange.principal.key_id if exchange.principal else None,
                "method": exchange.method,
                "route": exchange.route,
                "status": exchange.status,
                "code": exchange.error_code,
                "ms": round((time.perf_counter() - exchange.started_s) * 1000, 2),
            }
        },
    )
