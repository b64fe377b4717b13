"""A running gateway on either store, and clients that may send anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import uvicorn

from gateway.app import create_app
from gateway.auth import Authenticator
from gateway.guard import Neighbours
from gateway.server import listening_socket, server_config
from sessionstore import AsyncSessionStore, EmbeddedServer, SessionStore

from ..support.gateway import KEY
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer
from .http1 import Answer, check_content, read_answer

__all__ = ["AUTHORIZATION", "PATIENCE_S", "PREFIX", "Client", "World", "embedded_world", "in_parallel", "redis_world"]

AUTHORIZATION = f"Bearer {KEY}"
BASE = "/api/v1"
#: How each key of the store begins.
PREFIX = "ss"
#: Seconds. Short, because a write waits for a lease where a view or the history is lost.
LEASE_S = 0.3
#: Seconds after which an answer that has not come never will.
PATIENCE_S = 45.0
#: Connections at the same time.
PARALLEL = 16

T = TypeVar("T")


class World:
    """A gateway, its address, and ways past it: a client of the bare store, and the library."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        raw: Any,
        store: Callable[[], SessionStore],
        tracebacks: Callable[[], int],
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.raw = raw
        self.store = store
        #: counts the exceptions that the gateway has logged
        self.tracebacks = tracebacks

    async def exchange(self, segments: Iterable[bytes]) -> bytes:
        """Send bytes over a connection of their own, close that side, and read all that comes."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            with contextlib.suppress(ConnectionError):
                for segment in segments:
                    writer.write(segment)
                    await writer.drain()
                writer.write_eof()
            return await _read_all(reader)
        finally:
            await _close(writer)

    @contextlib.asynccontextmanager
    async def client(self, authorization: str | None = AUTHORIZATION) -> AsyncIterator[Client]:
        """A client that keeps its connection."""
        client = Client(self, authorization)
        try:
            yield client
        finally:
            await client.close()

    async def sessions(self, project: str, environment: str = "staging") -> dict[str, dict[str, Any]]:
        """All sessions of an environment, by key."""
        found: dict[str, dict[str, Any]] = {}
        async with self.client() as client:
            cursor = None
            while True:
                query = {"project": project, "environment": environment, "limit": "100"}
                answer = await client.call("GET", "/sessions", {**query, **({"cursor": cursor} if cursor else {})})
                assert answer.status == 200, answer
                found.update({session["sessionKey"]: session for session in answer.document["sessions"]})
                cursor = answer.document["nextCursor"]
                if cursor is None:
                    return found

    def now_ms(self) -> int:
        """The store's time."""
        seconds, microseconds = self.raw.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def key(self, project: str, part: str, environment: str = "staging") -> str:
        """A key of an environment in the bare store."""
        return f"{PREFIX}:{{{project}}}:{environment}:{part}"


class Client:
    """Well-framed requests on one connection, which it opens anew when the gateway has closed it."""

    def __init__(self, world: World, authorization: str | None) -> None:
        self._world = world
        self.authorization = authorization
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | str = "",
        body: bytes | None = None,
        headers: Sequence[tuple[str, str]] = (),
        *,
        base: str = BASE,
    ) -> Answer:
        """Send one request, and check the form of its answer. A `path` is sent as it is.

        Raises
        ------
        WrongAnswerError
        """
        query = query if isinstance(query, str) else urlencode(query)
        lines = [f"{method} {base}{path}{'?' if query else ''}{query} HTTP/1.1", "Host: localhost"]
        if self.authorization is not None:
            lines.append(f"Authorization: {self.authorization}")
        lines += [f"{name}: {value}" for name, value in headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        raw = "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._world.host, self._world.port)
        reader, writer = self._streams
        writer.write(raw)
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 1"):
                head = await reader.readuntil(b"\r\n\r\n")
            answer, _ = read_answer(head, 0, b"HEAD")
            if method != "HEAD" and answer.status != 304:
                answer.body = await reader.readexactly(int(answer.headers["content-length"]))
                check_content(answer)
        if answer.headers.get("connection") == "close":
            await self.close()
        return answer

    async def put(self, place: dict[str, str], key: str, body: object, **options: Any) -> Answer:
        """PUT a session."""
        headers = [("Content-Type", "application/json"), *options.pop("headers", ())]
        return await self.call("PUT", f"/sessions/{key}", place, json.dumps(body).encode(), headers, **options)

    async def close(self) -> None:
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            await _close(writer)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    received = b""
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                received += chunk
    return received


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def in_parallel(inputs: Sequence[T], attack: Callable[[T], Awaitable[list[str]]]) -> list[str]:
    """Attack with each input, some at a time; returns what is wrong, with the input."""
    failures: list[str] = []
    waiting = iter(inputs)

    async def work() -> None:
        for each in waiting:
            try:
                failures.extend(f"{wrong}; after {each!r}" for wrong in await attack(each))
            except Exception as exc:
                failures.append(f"{exc!r}; after {each!r}")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(PARALLEL):
            tasks.create_task(work())
    return failures


@contextlib.contextmanager
def redis_world(lease_s: float = LEASE_S) -> Iterator[World]:
    """A gateway process on a Redis of its own."""
    arguments = ("--rate-limit", "off", "--lease", f"{lease_s}s", "--no-access-log")
    with RedisServer() as server, server.client() as raw, GatewayProcess(server.url, *arguments) as gateway:

        def store() -> SessionStore:
            return SessionStore.from_url(server.url, lease_s=lease_s)

        yield World("redis", gateway.host, gateway.port, raw, store, lambda: gateway.log.count("Traceback"))


@contextlib.contextmanager
def embedded_world(lease_s: float = LEASE_S) -> Iterator[World]:
    """A gateway on the embedded store, in a thread of this process: only so can a test reach into the store."""
    with EmbeddedServer() as memory, memory.client() as raw, _GatewayThread(memory, lease_s) as gateway:

        def store() -> SessionStore:
            return SessionStore.embedded(memory, lease_s=lease_s)

        yield World("embedded", *gateway.address, raw, store, lambda: gateway.tracebacks)


class _GatewayThread(logging.Handler):
    """Runs the gateway, and takes what it logs."""

    def __init__(self, memory: EmbeddedServer, lease_s: float) -> None:
        super().__init__()
        self.tracebacks = 0
        self._memory = memory
        self._lease_s = lease_s
        self._socket = listening_socket("127.0.0.1", 0)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="gateway")
        self._log = logging.getLogger("gateway")

    def emit(self, record: logging.LogRecord) -> None:
        self.tracebacks += record.exc_info is not None

    def __enter__(self) -> Self:
        self._log.addHandler(self)
        self._log.propagate = False
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self._log.removeHandler(self)
        self._log.propagate = True

    async def _serve(self) -> None:
        store = AsyncSessionStore.embedded(self._memory, lease_s=self._lease_s)
        authenticator = Authenticator(KEY, store)
        neighbours = Neighbours()
        app = create_app(store, authenticator, access_log=False)
        self._server = uvicorn.Server(server_config(app, shutdown_grace_s=1.0, neighbours=neighbours))
        async with store, authenticator.keeping():
            self._ready.set()
            await self._server.serve([self._socket])
        await neighbours.aclose()
