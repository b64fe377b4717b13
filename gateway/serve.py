"""Run the gateway: ``python -m gateway --help``.

Exit codes: 0 after SIGTERM or Ctrl+C; 1 if it can't listen, has no store or no key, or finds an old h11; 2 for an
invalid option or variable, or a missing package.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence

import uvicorn
from starlette.types import ASGIApp

from sessionstore import AsyncSessionStore, EmbeddedServer
from sessionstore.api_keys.model import generate_secret
from sessionstore.clock import lease_clock
from sessionstore.errors import SessionStoreError
from sessionstore.options import StoreOptions
from sessionstore.variables import unknown_variables

from .app import audit, create_app, create_metrics_app, serve_by_port
from .auth import Authenticator
from .guard import Neighbours
from .limits import RateLimiter
from .logs import configure_logging
from .metrics import Metrics
from .routes import BASE_PATH
from .server import OutdatedServerError, listening_socket, server_config
from .settings import API_KEY_VARIABLE, MAKE_ONE, Settings, UsageError, parse_settings

log = logging.getLogger("gateway")


class StartError(Exception):
    """The gateway can't start; the message says why and what to do."""


def run(arguments: Sequence[str], program: str) -> int:
    """Run the gateway until a signal stops it; returns the exit code. `program` is its name in the help."""
    unknown = unknown_variables(os.environ)
    try:
        settings = parse_settings(arguments, os.environ, program)
    except UsageError as exc:
        return _fail(2, "\n".join([str(exc), *unknown, f"See {program} --help."]))
    configure_logging(settings.log_level)
    for sentence in unknown:
        log.warning("%s", sentence)
    try:
        with contextlib.ExitStack() as stack:
            _run(settings, stack)
    except (StartError, OutdatedServerError, SessionStoreError) as exc:
        return _fail(1, str(exc))
    return 0


def _run(settings: Settings, stack: contextlib.ExitStack) -> None:
    listeners = [_listen(stack, settings.host, settings.port, "--port")]
    if isinstance(settings.metrics, int):
        listeners.append(_listen(stack, settings.host, settings.metrics, "--metrics"))
    metrics = Metrics()
    options: StoreOptions = {
        "ttl_s": settings.ttl_s,
        "lease_s": settings.lease_s,
        "deadline_s": settings.deadline_s,
        "prefix": settings.prefix,
        "observe": metrics.called_redis,
        "max_sessions": settings.max_sessions,
        "max_project_bytes": settings.max_project_bytes,
        "max_environments": settings.max_environments,
    }
    if settings.replicas is not None:
        options["replicas"] = settings.replicas
    secret = settings.api_key
    if settings.redis_url is None:
        memory = stack.enter_context(EmbeddedServer())
        store = AsyncSessionStore.embedded(memory, **options)
        secret = secret or generate_secret()
        socket_url = memory.listen() if settings.embedded_socket else None
        _print_welcome(_url(listeners[0]), socket_url, secret, generated=settings.api_key is None)
    else:
        store = AsyncSessionStore.from_url(settings.redis_url, **options)
        metrics.check_primaries_of(store)
    authenticator = Authenticator(
        secret, store, on_refusal=metrics.refused, on_load=metrics.loaded_keys, grace_s=settings.key_grace_s
    )
    metrics.show_key_age(authenticator.age_s)
    limiter = None
    if settings.rate_limit is not None:
        limiter = RateLimiter(store, settings.rate_limit, metrics.let_through)
    app: ASGIApp = create_app(
        store,
        authenticator,
        limiter=limiter,
        metrics=metrics,
        serve_metrics=settings.metrics == "on",
        access_log=settings.access_log,
    )
    if settings.audit_log:
        audit.setLevel(logging.INFO)
    if isinstance(settings.metrics, int):
        app = serve_by_port(app, {listeners[1].getsockname()[1]: create_metrics_app(metrics)})
    neighbours = Neighbours(settings.max_connections, metrics.rejected)
    config = server_config(app, shutdown_grace_s=settings.shutdown_grace_s, neighbours=neighbours)
    # A signal cancels a start that waits for Redis.
    stopped = contextlib.suppress(asyncio.CancelledError)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner, stopped:
        runner.run(_serve(config, neighbours, store, authenticator, listeners, needs_key=secret is None))


async def _serve(
    config: uvicorn.Config,
    neighbours: Neighbours,
    store: AsyncSessionStore,
    authenticator: Authenticator,
    listeners: list[socket.socket],
    *,
    needs_key: bool,
) -> None:
    task = asyncio.current_task()
    assert task is not None, "asyncio.Runner makes one"
    _on_signal(task.cancel)
    async with store, authenticator.keeping() as loaded:
        if needs_key and loaded and not authenticator.ring.admits_anybody(lease_clock()):
            raise StartError(
                "No API key opens this gateway: make one with sessionstore keys create, or set "
                f"{API_KEY_VARIABLE}. {MAKE_ONE}"
            )
        if not loaded:
            log.warning("The gateway answers 503 until the API keys can be loaded.")
        for listener in listeners[1:]:
            log.info("Metrics are on %s/metrics", _url(listener))
        log.info("Listening on %s", _url(listeners[0]))
        server = uvicorn.Server(config)
        # All that is loaded stays. A full collection would look at it each time, for 50 ms.
        gc.collect()
        gc.freeze()

        def stop() -> None:
            server.should_exit = True

        # While it serves, Uvicorn handles signals. When it has stopped it raises the signal again, for this handler.
        _on_signal(stop)
        await server.serve(listeners)
    # Requests that the grace has cut off were answered meanwhile.
    await neighbours.aclose()


def _on_signal(handler: Callable[[], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, handler)


def _listen(stack: contextlib.ExitStack, host: str, port: int, option: str) -> socket.socket:
    try:
        return stack.enter_context(listening_socket(host, port))
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise StartError(f"Can't listen on {host} port {port}: {reason}. Choose with --host or {option}.") from exc


def _print_welcome(url: str, socket_url: str | None, secret: str, *, generated: bool) -> None:
    """Tell a first user what they need: that state is lost, the key, and calls to paste.

    A chosen key is not shown: the user has it in the environment.
    """
    shown = secret if generated else f"${API_KEY_VARIABLE}"
    session = f"{url}{BASE_PATH}/sessions/ci-42?project=checkout&environment=staging"
    authorization = f'-H "Authorization: Bearer {shown}"'
    body = '{"label": "CI run 4821", "overrides": ["ovr_extraMock"]}'
    redis = (
        f"{socket_url}  (for proxies and commands of this user)" if socket_url else "none; --embedded-socket opens one"
    )
    print(  # noqa: T201  for a person at a terminal; logs go to standard error
        f"""\
Sessions live in this process's memory: all state is lost when it exits.

  API    {url}{BASE_PATH}  (described by {BASE_PATH}/openapi.json)
  Redis  {redis}
  Key    {shown}

Try it:

  curl -X PUT '{session}' {authorization} -H 'Content-Type: application/json' -d '{body}'
  curl '{session}' {authorization}
  curl -X DELETE '{session}&mode=delete' {authorization}
""",
        flush=True,
    )


def _url(listener: socket.socket) -> str:
    """Show where a client of this machine connects; the loopback address stands for all interfaces."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _fail(code: int, message: str) -> int:
    print(message, file=sys.stderr)  # noqa: T201  one sentence for a person, not a log record
    return code
