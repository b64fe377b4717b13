"""Uvicorn, set up for the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn

from .errors import NOT_HTTP, new_request_id, refusal

__all__ = ["Server", "listening_socket", "server_config", "serving_beside"]

#: Seconds that an idle connection stays open: longer than load balancers keep theirs, so that none is closed just as it
#: is used again.
KEEP_ALIVE_S = 75

#: Connections that may wait to be accepted.
BACKLOG = 2048


class Server(uvicorn.Server):
    """A server that ends with 0 after SIGTERM or SIGINT: Uvicorn's own raises the signal again when it is done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on the first signal; a second SIGINT does not wait for requests in flight."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


class _Unsignalled(uvicorn.Server):
    """A server that ends when it is told to by its owner; signals are the other one's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving_beside(config: uvicorn.Config, listener: socket.socket) -> AsyncIterator[None]:
    """Serve another app on the same event loop until the block ends."""
    server = _Unsignalled(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(task, return_exceptions=True)


def server_config(
    app: Any, *, shutdown_grace_s: float, on_refusal: Callable[[], None] = lambda: None
) -> uvicorn.Config:
    """Uvicorn's configuration for `app`; `on_refusal` is told of what was no request, and so never came to it."""
    return uvicorn.Config(
        app,
        http=_protocol(on_refusal),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=shutdown_grace_s,  # type: ignore[arg-type]  # any number of seconds will do
    )


def listening_socket(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises
    ------
    OSError
        The address is in use, or is not this machine's.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


def _protocol(on_refusal: Callable[[], None]) -> type[asyncio.Protocol]:
    """The HTTP protocol: on httptools where there is one, else Uvicorn's own on h11."""
    try:
        from .protocol import Protocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        class PlainProtocol(H11Protocol):
            """Answers what it can't parse as the API answers. h11 ignores offers, and has a bound for heads."""

            def send_400_response(self, msg: str) -> None:
                on_refusal()
                self.transport.write(refusal(NOT_HTTP, new_request_id()))
                self.transport.close()

        return PlainProtocol

    class CountingProtocol(Protocol):
        def refused(self) -> None:
            on_refusal()

    return CountingProtocol
