"""A load generator for HTTP/1.1: keep-alive connections, each with one request in flight.

Requests are encoded before the clock starts, and responses are parsed only to find their end. So the generator takes
little time from the server that it measures on the same machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

__all__ = ["Outcome", "request", "run_load"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run measured; `latencies_s` are sorted."""

    seconds: float
    latencies_s: list[float]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies_s) / self.seconds


def request(method: str, target: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """Encode one request."""
    lines = [f"{method} {target} HTTP/1.1", "host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def run_load(port: int, requests: Iterator[bytes], *, connections: int, seconds: float) -> Outcome:
    """Send `requests` for some seconds, on 127.0.0.1.

    Raises
    ------
    RuntimeError
        A response is not 200, or a connection was closed.
    """
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: _Client(requests, latencies), "127.0.0.1", port)
        clients.append(client)
    started = time.perf_counter()
    until = started + seconds
    try:
        await asyncio.gather(*(client.run(until) for client in clients))
    finally:
        for client in clients:
            client.close()
    elapsed = time.perf_counter() - started
    latencies.sort()
    return Outcome(elapsed, latencies)


class _Client(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], latencies: list[float]) -> None:
        self._requests = requests
        self._latencies = latencies
        self._buffer = b""
        self._until = 0.0
        self._sent_at = 0.0
        self._done: asyncio.Future[None] | None = None
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    async def run(self, until: float) -> None:
        self._until = until
        self._done = asyncio.get_running_loop().create_future()
        self._send()
        await self._done

    def close(self) -> None:
        self._closing = True
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        at = buffer.find(b"content-length: ") + 16
        length = int(buffer[at : buffer.index(b"\r", at)])
        if len(buffer) < head_end + 4 + length:
            return
        now = time.perf_counter()
        self._latencies.append(now - self._sent_at)
        if not buffer.startswith(b"HTTP/1.1 200 "):
            self._fail(f"A response is not 200: {buffer!r}")
            return
        self._buffer = b""
        if now < self._until:
            self._send()
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self._fail("The server closed a connection.")

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(next(self._requests))

    def _fail(self, message: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RuntimeError(message))
