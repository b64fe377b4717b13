"""One connection of the gateway, without a network: what it holds, for how long, and what a hostile header costs."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest
from uvicorn.server import ServerState

from gateway import inputs
from gateway.protocol import ARRIVAL_S, MAX_HEAD_BYTES, Protocol
from gateway.server import server_config
from sessionstore.errors import SessionStoreError

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"PUT /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


class Loop:
    """An event loop of which nothing runs by itself."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Any, Mock]] = []
        self.tasks: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any) -> Mock:
        timer = Mock()
        self.timers.append((self.now + delay, callback, timer))
        return timer

    def create_task(self, coroutine: Any, **_: Any) -> Mock:
        coroutine.close()
        self.tasks.append(coroutine)
        return Mock()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now and not timer[2].cancel.called]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, callback, _ in due:
            callback()


class Connection:
    """A protocol on a transport that remembers what was written."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.refusals = 0
        config = server_config(Mock(), shutdown_grace_s=1.0, on_refusal=self.count)
        protocol: Any = config.http
        assert issubclass(protocol, Protocol)
        self.protocol: Any = protocol(config, ServerState(), {}, self.loop)
        self.transport = Mock(is_closing=Mock(return_value=False), get_extra_info=Mock(return_value=None))
        self.protocol.connection_made(self.transport)

    def count(self) -> None:
        self.refusals += 1

    def receive(self, *segments: bytes) -> None:
        for segment in segments:
            self.protocol.data_received(segment)

    def refusal(self) -> str:
        """The sentence of the answer to what was refused."""
        assert self.refusals == 1
        head, _, body = self.transport.write.call_args.args[0].partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        sentence: str = json.loads(body)["error"]
        return sentence


@pytest.fixture
def connection() -> Connection:
    return Connection()


class TestTrailers:
    def test_are_no_headers(self, connection: Connection) -> None:
        connection.receive(CHUNKED + b"0\r\nAuthorization: Bearer x\r\nX-Late: 1\r\n\r\n")

        assert [name for name, _ in connection.protocol.cycle.scope["headers"]] == [b"host", b"transfer-encoding"]
        assert not connection.protocol.cycle.more_body

    @pytest.mark.parametrize("line", [b"X-Late: 1\r\n" * 100, b"a" * 1000])
    def test_that_do_not_end_are_refused(self, connection: Connection, line: bytes) -> None:
        connection.receive(CHUNKED, b"2\r\n{}\r\n", b"0\r\nX-First: ")
        for _ in range(1 + MAX_HEAD_BYTES // len(line)):
            assert connection.refusals == 0
            connection.receive(line)

        assert "larger than 64 KiB" in connection.refusal()
        assert connection.protocol.cycle.disconnected

    def test_a_long_body_in_small_chunks_is_none(self, connection: Connection) -> None:
        connection.receive(CHUNKED, *[b"1\r\nx\r\n"] * MAX_HEAD_BYTES)

        assert connection.refusals == 0


class TestPipelining:
    def test_no_more_is_read_while_requests_wait(self, connection: Connection) -> None:
        connection.receive(GET * 3)
        assert len(connection.protocol.pipeline) == 2

        # When a request is answered, and those that wait want to read
        for waiting in (1, 0):
            connection.protocol.cycle.response_complete = True
            connection.protocol.on_response_complete()
            assert len(connection.protocol.pipeline) == waiting
            connection.protocol.flow.resume_reading()
            # Then that has to wait for the last of them
            assert connection.protocol.flow.read_paused is (waiting > 0)
        assert connection.transport.pause_reading.call_count == connection.transport.resume_reading.call_count == 1


class TestArrival:
    def test_a_connection_on_which_nothing_comes_is_closed(self, connection: Connection) -> None:
        connection.loop.advance(ARRIVAL_S)

        connection.transport.close.assert_called_once_with()
        connection.transport.write.assert_not_called()

    @pytest.mark.parametrize(
        "begun", [GET[:-2], CHUNKED, CHUNKED + b"2\r\n{}\r\n", GET[:-4] + b"\r\nConnection: Upgrade\r\nUpgrade: h2c"]
    )
    def test_a_request_that_does_not_come_to_its_end_is_refused(self, connection: Connection, begun: bytes) -> None:
        connection.loop.advance(ARRIVAL_S / 2)
        connection.receive(begun)
        connection.loop.advance(ARRIVAL_S / 2)
        connection.loop.advance(1.0)

        assert "within 60 seconds" in connection.refusal()

    def test_the_time_is_that_of_each_request(self, connection: Connection) -> None:
        for _ in range(5):
            connection.loop.advance(ARRIVAL_S * 0.7)
            connection.receive(GET)
            connection.protocol.cycle.response_complete = True
            connection.loop.advance(1.0)
        # and an answer may take its time
        connection.receive(GET)
        connection.loop.advance(10 * ARRIVAL_S)

        assert connection.refusals == 0
        connection.transport.close.assert_not_called()

    def test_the_rest_of_a_segment_begins_the_next_one(self, connection: Connection) -> None:
        connection.receive(GET + b"GET ")
        connection.protocol.cycle.response_complete = True
        for _ in range(3):
            connection.loop.advance(ARRIVAL_S)

        assert "within 60 seconds" in connection.refusal()

    def test_an_empty_line_is_no_request(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.protocol.cycle.response_complete = True
        connection.receive(b"\r\n")
        for _ in range(3):
            connection.loop.advance(ARRIVAL_S)

        connection.transport.close.assert_called_once_with()

    def test_nothing_is_left_of_a_lost_connection(self, connection: Connection) -> None:
        connection.receive(b"\x00\x01\r\n\r\n")
        connection.protocol.connection_lost(None)

        assert all(timer.cancel.called for _, _, timer in connection.loop.timers)


#: By the square of its length, each of these would take hours.
LONG = 1_000_000


@pytest.mark.parametrize(
    ("read", "value"),
    [
        ("prefers", b"a" * LONG + b'"'),
        ("prefers", b" " * LONG + b'"'),
        ("prefers", b'"' + b"\\" * LONG),
        ("prefers", b',"' * LONG),
        ("tags", b"," + b" " * LONG + b"x"),
        ("tags", b'"' * LONG),
        ("tags", b" ," * LONG + b"x"),
        ("media type", b"application/json" + b" " * LONG + b"x"),
        ("media type", b"application/json;charset=utf-8" + b" " * LONG + b"x"),
        ("media type", b"application/json;" + b" " * LONG + b"x"),
    ],
)
def test_a_hostile_header_takes_no_time(read: str, value: bytes) -> None:
    if read == "prefers":
        assert not inputs.prefers(value, b"respond-async")
    elif read == "tags":
        with pytest.raises(SessionStoreError):
            inputs.parse_entity_tags(value, "If-Match", weak=True)
    else:
        with pytest.raises(SessionStoreError):
            inputs.check_media_type(value, None)
