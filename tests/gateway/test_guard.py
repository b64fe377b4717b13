"""One guarded connection: Uvicorn's protocol within the guard, on a transport and a loop that the test controls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway import guard
from gateway.errors import ARRIVAL_S, MAX_HEAD_BYTES
from gateway.guard import KEEP_ALIVE_S, LINGER_S, MAX_TURNED_AWAY, READ_BYTES, TICK_S, WRITE_S, Guard, Neighbours
from gateway.server import server_config

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"PUT /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
OPEN_PIPE = os.pipe()
ANSWER = b"HTTP/1.1 200 OK\r\nx-request-id: 1\r\ncontent-length: 2\r\n\r\n{}"


class Timer:
    def __init__(self, due: float, callback: Callable[[], object]) -> None:
        self.due = due
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop whose clock the test moves. The test starts each task, which runs to its end."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.soon: list[Callable[[], object]] = []
        self.tasks: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def create_task(self, coroutine: Any, **_: Any) -> asyncio.Future[None]:
        self.tasks.append(coroutine)
        return _NEVER

    def answer(self) -> None:
        """Let the app answer the next request."""
        with pytest.raises(StopIteration):
            self.tasks.pop(0).send(None)
        self.settle()

    def settle(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def advance(self, seconds: float) -> None:
        """Move the clock, one tick of the guard after the other."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + TICK_S)
            due = [timer for timer in self.timers if timer.due <= self.now and not timer.cancelled]
            self.timers = [timer for timer in self.timers if timer not in due and not timer.cancelled]
            for timer in due:
                timer.callback()
            self.settle()

    def close(self) -> None:
        for task in self.tasks:
            task.close()


class _Never:
    def add_done_callback(self, callback: object) -> None: ...


_NEVER = cast("asyncio.Future[None]", _Never())


class Socket:
    """Connected to a client that is there."""

    def fileno(self) -> int:
        return OPEN_PIPE[0]

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 8080

    getpeername = getsockname


class Transport:
    """A client that sends the test's bytes, and reads all output but `buffered` bytes."""

    def __init__(self) -> None:
        self.written = b""
        self.buffered = 0
        self.reading = True
        self.ended = self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str, default: object = None) -> object:
        return Socket() if name == "socket" else default

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b"{}"})


HEADERS = [(b"x-request-id", b"1"), (b"content-length", b"2")]


class Connection:
    """A connection to a server with room for one; `refusals` are the reported codes."""

    def __init__(self, loop: Loop, neighbours: Neighbours | None = None) -> None:
        self.loop = loop
        self.refusals: list[str] = []
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        config.load()
        self.state = ServerState()
        self.neighbours = neighbours or Neighbours(1, self.refusals.append)
        arguments = {"config": config, "server_state": self.state, "app_state": {}, "_loop": loop}
        self.guard = Guard(config.http_protocol_class, self.neighbours, **arguments)
        self.transport = Transport()
        self.guard.connection_made(self.transport)  # type: ignore[arg-type]

    def receive(self, *segments: bytes) -> None:
        for segment in segments:
            assert self.transport.reading, "the guard does not read"
            for start in range(0, len(segment), READ_BYTES):
                part = segment[start : start + READ_BYTES]
                self.guard.get_buffer(-1)[: len(part)] = part
                self.guard.buffer_updated(len(part))
            self.loop.settle()

    def refusal(self) -> str:
        """Check the only answer, which the guard made; return its sentence."""
        assert self.refusals == ["bad_request"]
        head, _, body = self.transport.written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert re.search(rb"x-request-id: [0-9a-f]{16}\r", head)
        sentence: str = json.loads(body)["error"]
        return sentence

    @property
    def is_open(self) -> bool:
        return not (self.transport.ended or self.transport.closed or self.transport.aborted)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def connection(loop: Loop) -> Connection:
    return Connection(loop)


class TestAnswer:
    def test_of_the_app_passes_and_the_next_request_is_read(self, connection: Connection) -> None:
        for _ in range(3):
            connection.receive(GET)
            connection.loop.answer()

        assert connection.transport.written == 3 * ANSWER
        assert connection.is_open

    def test_of_the_server_to_what_is_not_http_is_the_envelope(self, connection: Connection) -> None:
        connection.receive(b"\x00\x01\r\n\r\n")

        assert "not valid HTTP/1.1" in connection.refusal()


class TestReading:
    def test_stops_while_a_request_is_answered(self, connection: Connection) -> None:
        connection.receive(GET)
        assert not connection.transport.reading

        connection.loop.answer()
        assert connection.transport.reading

    def test_stops_until_the_last_of_several_requests_is_answered(self, connection: Connection) -> None:
        connection.receive(3 * GET)
        for _ in range(3):
            assert not connection.transport.reading
            connection.loop.answer()

        assert connection.transport.reading
        assert connection.transport.written == 3 * ANSWER

    def test_does_not_resume_when_the_app_asks_for_more_of_a_whole_request(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.guard.resume_reading()

        assert not connection.transport.reading

    def test_goes_on_in_a_body_unless_the_server_has_enough(self, connection: Connection) -> None:
        connection.receive(CHUNKED)
        assert connection.transport.reading

        connection.receive(b"20000\r\n" + 0x20000 * b"x" + b"\r\n")
        assert not connection.transport.reading

    def test_goes_on_to_discard_an_unwanted_body(self, connection: Connection) -> None:
        connection.receive(CHUNKED)
        connection.loop.answer()
        connection.receive(b"2\r\n{}\r\n", b"0\r\n\r\n", GET)
        connection.loop.answer()

        assert connection.transport.written == 2 * ANSWER

    def test_malformed_rest_of_an_answered_body_closes_the_connection(self, connection: Connection) -> None:
        connection.receive(CHUNKED)
        connection.loop.answer()
        connection.receive(b"not a length\r\n")

        assert connection.transport.written == ANSWER
        assert connection.transport.ended
        assert connection.refusals == []


class TestHead:
    @pytest.mark.parametrize("line", [b"X-Late: 1\r\n" * 100, b"a" * 1000], ids=["lines", "one line"])
    @pytest.mark.parametrize(
        "begun", [GET[:-2] + b"X-First: ", CHUNKED + b"2\r\n{}\r\n0\r\nX-First: "], ids=["headers", "trailers"]
    )
    def test_without_end_is_refused(self, connection: Connection, begun: bytes, line: bytes) -> None:
        connection.receive(begun)
        for _ in range(MAX_HEAD_BYTES // len(line)):
            assert connection.refusals == []
            connection.receive(line)
        connection.receive(line)

        assert "exceed 64 KiB" in connection.refusal()

    def test_bound_does_not_hold_for_a_body_in_small_chunks(self, connection: Connection) -> None:
        connection.receive(CHUNKED)
        connection.loop.answer()
        connection.receive(*[b"1\r\nx\r\n"] * (MAX_HEAD_BYTES // 2))

        assert connection.refusals == []


class TestArrival:
    @pytest.mark.parametrize(
        "begun",
        [GET[:-2], CHUNKED, CHUNKED + b"2\r\n{}\r\n", GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c"],
        ids=["head", "no body", "body", "upgrade"],
    )
    def test_request_that_stays_incomplete_is_refused(self, connection: Connection, begun: bytes) -> None:
        connection.loop.advance(ARRIVAL_S / 2)
        connection.receive(begun)
        connection.loop.advance(ARRIVAL_S - TICK_S)
        assert connection.is_open
        connection.loop.advance(TICK_S)

        assert "within 60 seconds" in connection.refusal()

    def test_one_byte_a_second_does_not_help(self, connection: Connection) -> None:
        for byte in GET[:-2]:
            connection.receive(bytes([byte]))
        for _ in range(int(ARRIVAL_S)):
            assert connection.is_open
            connection.receive(b"X")
            connection.loop.advance(1.0)

        assert "within 60 seconds" in connection.refusal()

    def test_body_of_an_answered_request_is_cut_off_without_a_second_answer(self, connection: Connection) -> None:
        connection.receive(CHUNKED)
        connection.loop.answer()
        connection.loop.advance(ARRIVAL_S)

        assert connection.transport.written == ANSWER
        assert not connection.is_open

    def test_time_counts_for_each_request(self, connection: Connection) -> None:
        for _ in range(5):
            connection.loop.advance(ARRIVAL_S * 0.7)
            connection.receive(GET)
            connection.loop.answer()
        for _ in range(5):
            connection.receive(GET[:20])
            connection.loop.advance(ARRIVAL_S * 0.7)
            connection.receive(GET[20:])
            connection.loop.answer()

        assert connection.is_open

    def test_slow_answer_is_not_cut_off(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.loop.advance(10 * ARRIVAL_S)
        connection.loop.answer()
        connection.loop.advance(KEEP_ALIVE_S / 2)

        assert connection.transport.written == ANSWER
        assert connection.is_open


class TestIdle:
    def test_silent_connection_is_closed_without_an_answer(self, connection: Connection) -> None:
        connection.loop.advance(KEEP_ALIVE_S - TICK_S)
        assert connection.is_open
        connection.loop.advance(TICK_S)

        assert connection.transport.ended
        assert connection.transport.written == b""

    def test_connection_is_closed_after_its_last_request(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.loop.answer()
        connection.loop.advance(KEEP_ALIVE_S + TICK_S)

        assert connection.transport.ended

    def test_discarded_body_does_not_keep_a_connection_open(self, connection: Connection) -> None:
        """Uvicorn starts no timer at the end of such a body."""
        connection.receive(CHUNKED)
        connection.loop.answer()
        connection.receive(b"0\r\n\r\n")
        connection.loop.advance(ARRIVAL_S + TICK_S)
        assert connection.is_open
        connection.loop.advance(KEEP_ALIVE_S - ARRIVAL_S)

        assert connection.transport.ended
        assert connection.transport.written == ANSWER


class TestWriting:
    def test_client_that_reads_nothing_is_cut_off(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.loop.answer()
        connection.transport.buffered = len(ANSWER)
        connection.loop.advance(WRITE_S - TICK_S)
        assert not connection.transport.aborted
        connection.loop.advance(2 * TICK_S)

        assert connection.transport.aborted

    def test_client_that_reads_slowly_is_not(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.loop.answer()
        for left in range(len(ANSWER), 0, -1):
            connection.transport.buffered = left
            connection.loop.advance(WRITE_S / 2)

        assert not connection.transport.aborted

    def test_client_that_reads_nothing_is_cut_off_after_the_end_too(self, connection: Connection) -> None:
        connection.receive(b"\x00\x01\r\n\r\n")
        connection.transport.buffered = 100
        connection.loop.advance(WRITE_S + TICK_S)

        assert connection.transport.aborted


class TestEnd:
    def test_of_a_refused_connection_lingers_and_drops_input(self, connection: Connection) -> None:
        connection.receive(b"\x00\x01\r\n\r\n")
        assert connection.transport.ended
        written = connection.transport.written
        connection.receive(GET, GET)
        assert not connection.transport.closed
        connection.loop.advance(LINGER_S)

        assert connection.transport.closed
        assert connection.transport.written == written

    def test_after_the_last_answer_lingers(self, connection: Connection) -> None:
        """The client may have sent more than the server reads: a reset would cost it the answer (RFC 9112, 9.6)."""
        connection.receive(GET.replace(b"Host", b"Connection: close\r\nHost"))
        connection.loop.answer()
        assert b"Connection: close" in connection.transport.written
        assert connection.transport.ended
        assert connection.transport.reading
        assert not connection.transport.closed
        connection.loop.advance(LINGER_S)

        assert connection.transport.closed

    def test_tells_the_app_at_once(self, connection: Connection) -> None:
        """An app that starts a moment after the refusal must not answer."""
        connection.receive(CHUNKED + b"not a length\r\n")
        assert connection.state.connections == set()
        connection.loop.answer()

        assert "not valid HTTP/1.1" in connection.refusal()
        assert connection.transport.written.count(b"HTTP/1.1 ") == 1

    def test_leaves_nothing_behind(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.loop.answer()
        connection.guard.connection_lost(ConnectionResetError())

        assert connection.neighbours.guards == set()
        assert all(timer.cancelled for timer in connection.loop.timers)

    async def test_of_the_server_gives_clients_a_moment_to_read(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that reads nothing must not keep the process from ending."""
        monkeypatch.setattr(guard, "LINGER_S", 0.05)
        connection.receive(GET)
        connection.loop.answer()
        aborted = asyncio.Event()
        monkeypatch.setattr(connection.transport, "abort", aborted.set)
        closing = asyncio.create_task(connection.neighbours.aclose())
        await asyncio.wait([closing], timeout=0.01)
        assert connection.transport.closed
        assert not aborted.is_set()
        await aborted.wait()
        assert not closing.done()
        connection.guard.connection_lost(None)

        await closing


class TestLimit:
    def test_connection_over_it_gets_an_answer(self, loop: Loop, connection: Connection) -> None:
        other = Connection(loop, connection.neighbours)

        assert connection.refusals == ["too_many_connections"]
        head, _, body = other.transport.written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert json.loads(body)["code"] == "too_many_connections"
        assert other.transport.ended
        other.receive(GET)
        assert loop.tasks == []

    def test_makes_room_when_a_connection_ends(self, loop: Loop, connection: Connection) -> None:
        connection.guard.connection_lost(None)

        other = Connection(loop, connection.neighbours)
        other.receive(GET)
        loop.answer()

        assert other.transport.written == ANSWER

    def test_is_answered_so_many_times_at_once(self, loop: Loop, connection: Connection) -> None:
        others = [Connection(loop, connection.neighbours) for _ in range(MAX_TURNED_AWAY + 1)]

        assert [other.transport.aborted for other in others] == [False] * MAX_TURNED_AWAY + [True]
        assert others[-1].transport.written == b""


@contextlib.asynccontextmanager
async def serving(served: Any, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve an app on this loop; yields a connection to it."""
    neighbours = Neighbours()
    config = server_config(served, shutdown_grace_s=1.0, neighbours=neighbours)
    config.load()
    protocol: Any = config.http_protocol_class
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()
        await neighbours.aclose()
        await asyncio.sleep(0.05)


async def drip(writer: asyncio.StreamWriter) -> None:
    for byte in GET[:-2] + 1000 * b"x":
        writer.write(bytes([byte]))
        await asyncio.sleep(0.01)


class TestRealClient:
    """On a real loop and real sockets, with bounds that a test can wait for."""

    @pytest.fixture(autouse=True)
    def short_bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("ARRIVAL_S", "WRITE_S"):
            monkeypatch.setattr(guard, name, 0.5)
        monkeypatch.setattr(guard, "TICK_S", 0.05)

    async def test_that_sends_slowly_is_refused(self) -> None:
        async with serving(app) as (reader, writer):
            sending = asyncio.create_task(drip(writer))
            received = await reader.read()
            sending.cancel()

        assert received.startswith(b"HTTP/1.1 400 ")
        assert b"did not arrive" in received

    @pytest.mark.parametrize("reset", [False, True])
    async def test_that_is_gone_is_known_to_the_app(self, reset: bool) -> None:
        asked, told = asyncio.Event(), asyncio.Event()

        async def waiting(scope: Any, receive: Any, send: Any) -> None:
            asked.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            told.set()

        async with serving(waiting) as (_, writer), asyncio.timeout(20):
            # More than one request, so that the end of the client's side is not next in line
            writer.write(GET + GET)
            await asked.wait()
            if reset:
                writer.transport.abort()
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                writer.close()

            await told.wait()

    async def test_that_half_closes_waits_for_its_answer(self) -> None:
        """It gets an interim response, once."""
        go = asyncio.Event()

        async def waiting(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await app(scope, receive, send)

        async with serving(waiting) as (reader, writer), asyncio.timeout(20):
            writer.write(GET)
            writer.write_eof()
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 102 Processing\r\n\r\n"
            await asyncio.sleep(5 * guard.TICK_S)
            go.set()

            received = await reader.read()
        assert re.sub(rb"date: [^\r]*\r\n", b"", received) == ANSWER

    async def test_that_still_sends_is_not_asked(self) -> None:
        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(5 * guard.TICK_S)
            await app(scope, receive, send)

        async with serving(slow) as (reader, writer), asyncio.timeout(20):
            writer.write(GET + GET)
            received = await reader.readuntil(b"{}")

        assert received.startswith(b"HTTP/1.1 200 ")

    async def test_that_reads_nothing_is_cut_off(self) -> None:
        async def large(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"x-request-id", b"1"), (b"content-length", b"%d" % 2**24)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": bytes(2**24)})

        async with serving(large, limit=64 * 1024) as (reader, writer):
            writer.write(GET)
            await asyncio.sleep(2.0)  # it fills its buffer, and reads no further
            received = 0
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(2**20):
                    received += len(chunk)

        assert received < 2**24
