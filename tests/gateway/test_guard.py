"""One connection of the gateway, without a network: the bounds that the guard sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.errors import ARRIVAL_S, MAX_HEAD_BYTES
from gateway.guard import KEEP_ALIVE_S, LINGER_S, MAX_TURNED_AWAY, TICK_S, WRITE_S, Guard, Neighbours

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"PUT /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nx-request-id: 1\r\ncontent-length: 0\r\n\r\n"


class Loop:
    """An event loop whose clock the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None], Mock]] = []
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Mock:
        handle = Mock()
        self.timers.append((self.now + delay, callback, handle))
        return handle

    def call_soon(self, callback: Callable[[], None]) -> Mock:
        self.soon.append(callback)
        return Mock()

    def run_soon(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def create_task(self, coroutine: Any, **_: Any) -> Mock:
        coroutine.close()
        return Mock()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end and not timer[2].cancel.called]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = end


class Connection:
    """A guard around Uvicorn's own protocol, on a transport that records what was written."""

    def __init__(self, neighbours: Neighbours | None = None) -> None:
        self.loop = Loop()
        self.refusals: list[str] = []
        self.neighbours = neighbours or Neighbours()
        self.neighbours.on_refusal = self.refusals.append
        config = uvicorn.Config(
            lambda scope, receive, send: None,
            http="h11",
            ws="none",
            log_config=None,
            interface="asgi3",
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        config.load()
        make: Any = config.http_protocol_class
        self.stock = make(config=config, server_state=ServerState(), app_state={}, _loop=self.loop)
        self.buffered = 0
        self.transport = Mock(
            is_closing=Mock(return_value=False),
            get_extra_info=Mock(return_value=None),
            can_write_eof=Mock(return_value=True),
            get_write_buffer_size=Mock(side_effect=lambda: self.buffered),
        )
        loop: Any = self.loop
        self.guard = Guard(self.stock, self.neighbours, loop)
        self.guard.connection_made(self.transport)

    def receive(self, *segments: bytes) -> None:
        for segment in segments:
            self.guard.data_received(segment)

    def answer(self) -> None:
        """Complete the response to the current request, as the app would."""
        http: h11.Connection = self.stock.conn
        http.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        http.send(h11.EndOfMessage())
        self.guard.write(ANSWER)
        self.stock.cycle.response_complete = True
        self.stock.on_response_complete()
        self.loop.run_soon()

    @property
    def written(self) -> bytes:
        return b"".join(call.args[0] for call in self.transport.write.call_args_list)

    @property
    def reads(self) -> bool:
        """Whether the guard reads, by its last word to the transport."""
        names = [call[0] for call in self.transport.method_calls if call[0] in ("pause_reading", "resume_reading")]
        return not names or names[-1] == "resume_reading"

    def refusal(self) -> tuple[int, str, str]:
        """Status, code and sentence of the envelope that the guard wrote."""
        head, _, body = self.written.partition(b"\r\n\r\n")
        document = json.loads(body)
        return int(head.split()[1]), document["code"], document["error"]


@pytest.fixture
def connection() -> Connection:
    return Connection()


class TestHeads:
    def test_a_head_without_end_is_refused_within_its_bound(self, connection: Connection) -> None:
        connection.receive(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        for _ in range(1 + MAX_HEAD_BYTES // 1000):
            connection.receive(b"a" * 1000)

        assert connection.refusal()[:2] == (400, "bad_request")
        assert connection.refusals == ["bad_request"]

    def test_trailers_without_end_are_cut_off(self, connection: Connection) -> None:
        connection.receive(CHUNKED, b"0\r\nX: ")
        for _ in range(1 + MAX_HEAD_BYTES // 1000):
            connection.receive(b"a" * 1000)

        assert connection.guard.is_closing()


class TestPipelining:
    def test_nothing_is_read_while_a_request_waits_for_its_answer(self, connection: Connection) -> None:
        connection.receive(GET * 3)
        assert not connection.reads

        for _ in range(2):
            connection.answer()
            assert not connection.reads
        connection.answer()
        assert connection.reads


class TestArrival:
    def test_an_idle_connection_is_closed(self, connection: Connection) -> None:
        connection.loop.advance(KEEP_ALIVE_S + TICK_S)

        connection.transport.close.assert_called()
        assert connection.written == b""

    @pytest.mark.parametrize("begun", [GET[:-2], CHUNKED, CHUNKED + b"2\r\n{}\r\n"])
    def test_a_request_that_does_not_arrive_whole_is_cut_off(self, connection: Connection, begun: bytes) -> None:
        connection.receive(begun)
        connection.loop.advance(ARRIVAL_S - 2 * TICK_S)
        assert not connection.guard.is_closing()
        connection.loop.advance(3 * TICK_S)

        assert connection.guard.is_closing()
        status, code, sentence = connection.refusal()
        assert (status, code) == (400, "bad_request")
        assert "within 60 seconds" in sentence

    def test_each_request_has_its_own_time(self, connection: Connection) -> None:
        for _ in range(5):
            connection.loop.advance(ARRIVAL_S * 0.7)
            connection.receive(GET)
            connection.answer()

        assert connection.refusals == []
        connection.transport.close.assert_not_called()

    def test_an_answer_may_take_its_time(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.loop.advance(10 * ARRIVAL_S)

        assert connection.refusals == []
        connection.transport.close.assert_not_called()


class TestWriting:
    def test_a_client_that_reads_nothing_is_cut_off(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.buffered = len(ANSWER)
        connection.guard.write(ANSWER)
        connection.loop.advance(WRITE_S - 2 * TICK_S)
        connection.transport.abort.assert_not_called()
        connection.loop.advance(4 * TICK_S)

        connection.transport.abort.assert_called_with()

    def test_a_client_that_reads_slowly_is_served(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.buffered = len(ANSWER)
        connection.guard.write(ANSWER)
        for _ in range(3):
            connection.loop.advance(WRITE_S * 0.9)
            connection.buffered -= 10

        connection.transport.abort.assert_not_called()


class TestServersOwnAnswers:
    def test_bad_framing_gets_the_envelope_and_time_to_read_it(self, connection: Connection) -> None:
        connection.receive(b"\x00\x01\r\n\r\n")

        assert connection.refusal()[:2] == (400, "bad_request")
        connection.transport.write_eof.assert_called_once_with()
        connection.transport.close.assert_not_called()
        connection.loop.advance(LINGER_S + TICK_S)
        connection.transport.close.assert_called()

    def test_an_answer_of_the_app_passes_unchanged(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.guard.write(ANSWER)

        assert connection.written == ANSWER

    def test_a_failure_of_the_server_is_an_internal_error(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.guard.write(b"HTTP/1.1 500 Internal Server Error\r\n\r\nInternal Server Error")

        assert connection.refusal()[:2] == (500, "internal_error")


class TestLimit:
    def test_a_connection_over_the_limit_gets_503_and_far_over_it_is_reset(self) -> None:
        neighbours = Neighbours(limit=1)
        first = Connection(neighbours)
        second = Connection(neighbours)
        assert second.refusal()[:2] == (503, "too_many_connections")
        others = [Connection(neighbours) for _ in range(MAX_TURNED_AWAY)]
        assert others[-1].written == b""
        others[-1].transport.abort.assert_called_once_with()

        # When they leave, there is room again
        for connection in (first, second, *others):
            connection.guard.connection_lost(None)
        assert Connection(neighbours).written == b""

    def test_a_lost_connection_leaves_nothing(self, connection: Connection) -> None:
        connection.receive(GET)
        connection.guard.connection_lost(None)

        assert connection.neighbours.guards == set()
        connection.loop.advance(10 * ARRIVAL_S)
        connection.transport.close.assert_not_called()
