"""Run the gateway: ``python -m gateway --help``.

Exit codes: 0 after SIGTERM or Ctrl+C, 1 where it can't listen or has no store, 2 for options and variables that can't
be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

from sessionstore import AsyncSessionStore, EmbeddedServer
from sessionstore.api_keys.model import generate_secret
from sessionstore.clock import lease_clock
from sessionstore.errors import SessionStoreError
from sessionstore.options import StoreOptions

from .app import create_app, create_metrics_app
from .auth import Authenticator
from .limits import RateLimiter
from .logs import configure_logging
from .metrics import Metrics
from .routes import BASE_PATH
from .server import Server, listening_socket, server_config, serving_beside
from .settings import API_KEY_VARIABLE, MAKE_ONE, Settings, UsageError, parse_settings

__all__ = ["main"]

log = logging.getLogger("gateway")


def main(arguments: Sequence[str] | None = None, program: str = "python -m gateway") -> int:
    """Run the gateway until it is told to stop; returns the exit code. `program` is how its help names it."""
    try:
        settings = parse_settings(sys.argv[1:] if arguments is None else arguments, os.environ, program)
    except UsageError as exc:
        return _fail(2, f"{exc}\nSee {program} --help.")
    configure_logging(settings.log_level)
    with contextlib.ExitStack() as stack:
        try:
            listener = _listen(stack, settings.host, settings.port, "--port")
            own_port = settings.metrics.port
            metrics_listener = None if own_port is None else _listen(stack, settings.host, own_port, "--metrics")
        except CantListenError as exc:
            return _fail(1, str(exc))
        metrics = Metrics() if settings.metrics.on else None
        try:
            embedded = stack.enter_context(EmbeddedServer()) if settings.redis_url is None else None
            store = _open_store(settings, embedded, metrics)
        except SessionStoreError as exc:
            return _fail(1, str(exc))
        secret = settings.api_key or (generate_secret() if embedded is not None else None)
        url = f"http://{_shown_address(listener)}"
        if embedded is not None:
            assert secret is not None, "an embedded store has a key"
            _print_welcome(url, embedded.listen(), secret, generated=settings.api_key is None)
        try:
            _run(settings, store, secret, metrics, listener, metrics_listener)
        except NoKeyError as exc:
            return _fail(1, str(exc))
    return 0


class NoKeyError(Exception):
    """Nobody could call this gateway."""

    def __init__(self) -> None:
        super().__init__(
            "No API key opens this gateway: make one with sessionstore keys create, or set "
            f"{API_KEY_VARIABLE}. {MAKE_ONE}"
        )


class CantListenError(Exception):
    """An address is in use, or is not this machine's."""


def _listen(stack: contextlib.ExitStack, host: str, port: int, option: str) -> socket.socket:
    try:
        return stack.enter_context(listening_socket(host, port))
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise CantListenError(f"Can't listen on {host} port {port}: {reason}. Choose with --host or {option}.") from exc


def _open_store(settings: Settings, embedded: EmbeddedServer | None, metrics: Metrics | None) -> AsyncSessionStore:
    options: StoreOptions = {
        "ttl_s": settings.ttl_s,
        "lease_s": settings.lease_s,
        "deadline_s": settings.deadline_s,
        "prefix": settings.prefix,
        "observe": None if metrics is None else metrics.called_redis,
    }
    if settings.redis_url is None:
        return AsyncSessionStore.embedded(embedded, **options)
    return AsyncSessionStore.from_url(settings.redis_url, **options)


def _run(
    settings: Settings,
    store: AsyncSessionStore,
    secret: str | None,
    metrics: Metrics | None,
    listener: socket.socket,
    metrics_listener: socket.socket | None,
) -> None:
    authenticator = Authenticator(secret, store, on_refusal=None if metrics is None else metrics.refused)
    limiter = None
    if settings.rate_limit is not None:
        limiter = RateLimiter(store, settings.rate_limit, None if metrics is None else metrics.let_through)
    app = create_app(
        store,
        authenticator,
        limiter=limiter,
        metrics=metrics,
        serve_metrics=metrics_listener is None,
        access_log=settings.access_log,
    )
    config = server_config(
        app,
        shutdown_grace_s=settings.shutdown_grace_s,
        on_refusal=(lambda: None) if metrics is None else metrics.malformed,
    )

    async def serve() -> None:
        task = asyncio.current_task()
        assert task is not None, "this is run as one"
        # Until the server has its own: Redis may keep the first load waiting.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        async with store, authenticator.keeping() as loaded:
            if secret is None and loaded and not authenticator.ring.admits_anybody(lease_clock()):
                raise NoKeyError
            if not loaded:
                log.warning("The gateway answers 503 until the API keys can be loaded.")
            async with contextlib.AsyncExitStack() as stack:
                if metrics is not None and metrics_listener is not None:
                    own = server_config(create_metrics_app(metrics), shutdown_grace_s=1)
                    await stack.enter_async_context(serving_beside(own, metrics_listener))
                    log.info("Metrics are on http://%s/metrics", _shown_address(metrics_listener))
                log.info("Listening on http://%s", _shown_address(listener))
                await Server(config).serve([listener])

    stopped_early = contextlib.suppress(asyncio.CancelledError)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner, stopped_early:
        runner.run(serve())


def _print_welcome(url: str, redis_url: str, secret: str, *, generated: bool) -> None:
    """Say what a first user needs: that nothing is kept, the key, and calls to paste.

    A key that was chosen is not shown: whoever chose it has it in the environment.
    """
    shown = secret if generated else f"${API_KEY_VARIABLE}"
    session = f"{url}{BASE_PATH}/sessions/ci-42?project=checkout&environment=staging"
    authorization = f'-H "Authorization: Bearer {shown}"'
    body = '{"label": "CI run 4821", "overrides": ["ovr_extraMock"]}'
    print(  # noqa: T201  for a person at a terminal; logs go to standard error
        f"""\
No Redis was named, so sessions live in this process's memory: all state is lost when it exits.

  API    {url}{BASE_PATH}
  Docs   {url}{BASE_PATH}/docs
  Redis  {redis_url}  (embedded; for proxies and the command line on this machine)
  Key    {shown}

Try it:

  curl -X PUT '{session}' {authorization} -H 'Content-Type: application/json' -d '{body}'
  curl '{session}' {authorization}
  curl -X DELETE '{session}&mode=delete' {authorization}
""",
        flush=True,
    )


def _shown_address(listener: socket.socket) -> str:
    """The address for a URL; one that stands for every interface is shown as the loopback one."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fail(code: int, message: str) -> int:
    print(message, file=sys.stderr)  # noqa: T201  one sentence for a person, not a log record
    return code


if __name__ == "__main__":
    sys.exit(main())
