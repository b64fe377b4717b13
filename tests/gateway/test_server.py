"""The gateway's HTTP server as a process, on bare sockets: input that no client library sends."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import server

from ..support.gateway import KEY
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer

PLACE = b"?project=checkout&environment=staging"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(shared_redis: RedisServer) -> Iterator[GatewayProcess]:
    with GatewayProcess(shared_redis.url, "--prefix", "server", "--rate-limit", "off") as process:
        yield process


def request(method: str, target: bytes, *headers: str, body: bytes = b"", connection: str = "close") -> bytes:
    lines = [f"Authorization: Bearer {KEY}", "Host: localhost", f"Connection: {connection}", *headers]
    return method.encode() + b" " + target + b" HTTP/1.1\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def put(key: str, *headers: str, body: bytes = b"", connection: str = "close") -> bytes:
    target = b"/api/v1/sessions/" + key.encode() + PLACE
    return request("PUT", target, "Content-Type: application/json", *headers, body=body, connection=connection)


def exchange(gateway: GatewayProcess, *segments: bytes, until_idle: bool = False) -> bytes:
    """Send segments, and read until the gateway closes the connection, or until nothing comes for half a second."""
    with gateway.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in segments:
            connection.sendall(segment)
            time.sleep(0.05)  # so that the gateway reads each segment by itself, on most runs
        received = connection.recv(65536)
        if until_idle:
            connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while chunk := connection.recv(65536):
                received += chunk
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def get(connection: socket.socket) -> list[int]:
    """GET on a connection that stays open."""
    connection.sendall(GET)
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(65536)
    return statuses(received)


def assert_refused(received: bytes) -> str:
    """Check the only answer, a 400 in the envelope with an id of the gateway; return its sentence."""
    assert statuses(received) == [400]
    head, _, body = received.partition(b"\r\n\r\n")
    head += b"\r\n"
    assert b"content-type: application/json\r\n" in head
    assert re.search(rb"x-request-id: [0-9a-f]{16}\r", head)
    assert re.search(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r", head), "RFC 9110, 6.6.1"
    document = json.loads(body)
    assert list(document) == ["error", "code"]
    assert document["code"] == "bad_request"
    sentence: str = document["error"]
    return sentence


class TestTarget:
    @pytest.mark.parametrize(
        ("segment", "key"),
        [("a%2Fb", "a/b"), ("..", ".."), ("%2e%2e", ".."), ("a%3Fb", "a?b"), ("%23", "#")],
    )
    def test_path_reaches_the_route_as_it_was_sent(self, gateway: GatewayProcess, segment: str, key: str) -> None:
        received = exchange(gateway, put(segment, "Content-Length: 2", body=b"{}"))

        assert statuses(received) == [200]
        assert json.loads(received.rpartition(b"\r\n\r\n")[2])["sessionKey"] == key

    def test_blank_key_is_422(self, gateway: GatewayProcess) -> None:
        assert statuses(exchange(gateway, put("%20", "Content-Length: 2", body=b"{}"))) == [422]

    def test_absolute_form_works(self, gateway: GatewayProcess) -> None:
        received = exchange(gateway, request("GET", b"HTTP://localhost/healthz"))

        assert statuses(received) == [200]

    @pytest.mark.parametrize(
        "line",
        [b"CONNECT localhost:80 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET http://localhost HTTP/1.1", b"PRI * HTTP/2.0"],
    )
    def test_other_forms_are_404(self, gateway: GatewayProcess, line: bytes) -> None:
        received = exchange(gateway, line + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")

        assert statuses(received) == [404]
        assert b'"code":"not_found"' in received


class TestMalformed:
    @pytest.mark.parametrize(
        "head",
        [
            b"GET /\xff HTTP/1.1\r\nHost: x",
            b"GET / HTTP/9\r\nHost: x",
            b"\x00\x01",
            b"GET /a b c HTTP/1.1\r\nHost: x",
            b"GET / HTTP/1.1",
            b"GET / HTTP/1.1\r\nHost: x\r\nHost: x",
            b"GET / HTTP/1.1\r\nHost : x",
            b"GET / HTTP/1.1\r\n Host: x",
            b"GET / HTTP/1.1\r\nHost: x\r\nX-Bad\x00Name: 1",
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2",
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1",
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2",
            b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip",
            b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked",
        ],
        ids=lambda head: repr(head)[2:60],
    )
    def test_head_is_400(self, gateway: GatewayProcess, head: bytes) -> None:
        assert "not valid HTTP/1.1" in assert_refused(exchange(gateway, head + b"\r\n\r\n"))

    @pytest.mark.parametrize("host", [b"a b", b"a, b", b"a/b", b"a@b", b"a:b", b"[::1", b"\xe4", b"a%b"], ids=repr)
    def test_invalid_host_is_400_and_ends_the_connection(self, gateway: GatewayProcess, host: bytes) -> None:
        """RFC 9112, 3.2."""
        received = exchange(gateway, b"GET /healthz HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" + GET)

        assert "not valid HTTP/1.1" in assert_refused(received)
        assert b"connection: close\r\n" in received

    @pytest.mark.parametrize(
        "host", [b"", b"localhost", b"a.example:8080", b"127.0.0.1:", b"[::1]:80", b"x-_~%41!"], ids=repr
    )
    def test_valid_host(self, gateway: GatewayProcess, host: bytes) -> None:
        assert statuses(exchange(gateway, LAST_GET.replace(b"localhost", host))) == [200]

    def test_folded_header_is_one_value(self, gateway: GatewayProcess) -> None:
        received = exchange(gateway, LAST_GET[:-2] + b"X-Request-Id: a\r\n b\r\n\r\n")

        assert statuses(received) == [200]
        assert re.search(rb"x-request-id: [0-9a-f]{16}\r", received), "the folded value is no request id"

    @pytest.mark.parametrize(
        "chunks",
        [
            b"not a length\r\n",
            b"2\r\n{}",
            b"2\r\n{}0\r\n\r\n",
            b"-1\r\n",
            b"2\r\n{}XX0\r\n\r\n",
            b"fffffffffffffffffffff\r\n",
        ],
        ids=repr,
    )
    def test_chunks_change_nothing(self, gateway: GatewayProcess, chunks: bytes) -> None:
        head = put("chunks", "Transfer-Encoding: chunked")
        with gateway.connect() as connection:
            connection.sendall(head + chunks)
            connection.shutdown(socket.SHUT_WR)
            received = connection.recv(65536)

        assert statuses(received) in ([400], [])
        with gateway.client() as client:
            assert client.get("/sessions/chunks").status_code == 404

    def test_content_length_beside_chunks_is_ignored(self, gateway: GatewayProcess) -> None:
        """RFC 9112, 6.1: Transfer-Encoding wins. The connection closes, so nothing can be smuggled behind it."""
        victim = request("DELETE", b"/api/v1/sessions/victim" + PLACE + b"&mode=delete")
        body = b"2\r\n{}\r\n0\r\n\r\n"
        with gateway.client() as client:
            client.put("/sessions/victim", json={}).raise_for_status()
            length = f"Content-Length: {len(body + victim)}"
            head = put("both", "Transfer-Encoding: chunked", length, connection="keep-alive")

            received = exchange(gateway, head + body + victim)

            assert statuses(received) == [200]
            assert b"connection: close\r\n" in received
            assert client.get("/sessions/victim").status_code == 200

    def test_requests_before_it_are_answered_first(self, gateway: GatewayProcess) -> None:
        good = put("before", "Content-Length: 2", body=b"{}", connection="keep-alive")

        received = exchange(gateway, good + good + b"\x00\x01\r\n\r\n")

        assert statuses(received) == [200, 200, 400]
        assert received.index(b"HTTP/1.1 400 ") < received.index(b"bad_request")

    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("before", [0, 2])
    def test_body_changes_nothing(self, gateway: GatewayProcess, before: int, apart: bool) -> None:
        head = before * GET + put("broken", "Transfer-Encoding: chunked")
        body = b'd\r\n{"label": "x"\r\nnot a length\r\n'

        received = exchange(gateway, *([head, body] if apart else [head + body]))

        assert statuses(received) == before * [200] + [400]
        with gateway.client() as client:
            assert client.get("/sessions/broken").status_code == 404

    def test_body_changes_nothing_even_if_the_call_ignores_it(self, gateway: GatewayProcess) -> None:
        with gateway.client() as client:
            client.put("/sessions/kept", json={"overrides": ["ovr_a"]}).raise_for_status()
            for method, target in (
                ("POST", b"/overrides/ovr_b" + PLACE),
                ("DELETE", b"/overrides/ovr_a" + PLACE),
                ("DELETE", PLACE),
                ("DELETE", PLACE + b"&mode=delete"),
            ):
                head = request(method, b"/api/v1/sessions/kept" + target, "Transfer-Encoding: chunked")
                received = exchange(gateway, head + b"2\r\n{}\r\nnot a length\r\n")
                assert statuses(received) == [400]
                assert client.get("/sessions/kept").json()["overrides"] == ["ovr_a"]
                # A valid body is read and ignored.
                if method == "POST":
                    assert statuses(exchange(gateway, head + b"2\r\n{}\r\n0\r\n\r\n")) == [200]
                    client.delete("/sessions/kept/overrides/ovr_b").raise_for_status()

    def test_body_of_a_head_request_is_refused_without_content(self, gateway: GatewayProcess) -> None:
        """RFC 9110, 9.3.2: an answer to HEAD has no content, whatever it says."""
        head = request("HEAD", b"/api/v1/sessions/broken" + PLACE, "Transfer-Encoding: chunked")

        received = exchange(gateway, head + b"not a length\r\n")

        assert statuses(received) == [400]
        assert received.endswith(b"\r\n\r\n")
        assert b"content-length: " in received

    def test_body_of_a_pipelined_head_request_is_refused_and_closes_the_connection(
        self, gateway: GatewayProcess
    ) -> None:
        head = request("HEAD", b"/healthz", "Transfer-Encoding: chunked", connection="keep-alive")

        received = exchange(gateway, GET + head + b"not a length\r\n")

        assert statuses(received) == [200, 400]
        assert received.endswith(b"\r\n\r\n")
        assert "Traceback" not in gateway.log

    def test_head_after_a_head_request_is_refused_with_content(self, gateway: GatewayProcess) -> None:
        received = exchange(gateway, request("HEAD", b"/healthz", connection="keep-alive") + b"\x00\r\n\r\n")

        assert statuses(received) == [200, 400]
        assert b"bad_request" in received

    def test_rest_of_an_answered_body_closes_the_connection(self, gateway: GatewayProcess) -> None:
        head = request("PUT", b"/nope", "Transfer-Encoding: chunked", connection="keep-alive")

        received = exchange(gateway, head, b"not a length\r\n")

        assert statuses(received) == [404]
        assert "Traceback" not in gateway.log


class TestBody:
    def test_chunked(self, gateway: GatewayProcess) -> None:
        received = exchange(
            gateway, put("chunked", "Transfer-Encoding: chunked", body=b'5\r\n{"lab\r\na\r\nel": "a" }\r\n0\r\n\r\n')
        )

        assert statuses(received) == [200]
        assert b'"label":"a"' in received

    def test_trailers_are_no_headers(self, gateway: GatewayProcess) -> None:
        head = put("trailers", "Transfer-Encoding: chunked").replace(b"Authorization", b"X-Authorization")
        trailer = b"Authorization: Bearer " + KEY.encode() + b"\r\n"

        received = exchange(gateway, head + b"2\r\n{}\r\n0\r\n" + trailer + b"\r\n")

        assert statuses(received) == [401]

    def test_trailers_without_end_are_refused(self, gateway: GatewayProcess) -> None:
        head = put("trailers", "Transfer-Encoding: chunked")

        lines = 64 * (b"X-Late: " + 1000 * b"a" + b"\r\n")
        received = exchange(gateway, head + b"2\r\n{}\r\n0\r\n", lines, lines, lines)

        assert "exceed 64 KiB" in assert_refused(received)
        with gateway.client() as client:
            assert client.get("/sessions/trailers").status_code == 404

    def test_too_large_in_chunks_is_413_before_it_ends(self, gateway: GatewayProcess) -> None:
        with gateway.connect() as connection:
            connection.sendall(put("huge", "Transfer-Encoding: chunked"))
            connection.sendall((b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 5)
            received = b""
            while b"body_too_large" not in received:
                chunk = connection.recv(65536)
                assert chunk, received
                received += chunk

        assert statuses(received) == [413]
        with gateway.client() as client:
            assert client.get("/sessions/huge").status_code == 404

    def test_too_large_is_answered_though_the_client_sends_on(self, gateway: GatewayProcess) -> None:
        """The client sends 8 MB before it reads. It gets the answer, and no reset."""
        size = 8 * 1024 * 1024
        with gateway.connect() as connection:
            connection.sendall(put("huge", f"Content-Length: {size}"))
            with contextlib.suppress(ConnectionError):
                connection.sendall(b" " * size)
            received = connection.recv(65536)

        assert statuses(received) == [413]

    def test_connection_is_kept_after_an_error(self, gateway: GatewayProcess) -> None:
        body = {"content": b"x" * 100_000, "headers": {"Content-Type": "application/json"}}
        with gateway.client() as client:
            assert client.put("/sessions/kept", **body).status_code == 413  # type: ignore[arg-type]
            assert client.get("/sessions/nobody").status_code == 404
            assert client.put("/sessions/kept", json={}).status_code == 200

    def test_white_space_around_a_value_is_removed(self, gateway: GatewayProcess) -> None:
        get = request("GET", b"/api/v1/sessions/spaces" + PLACE, "X-Request-Id: \t mine \t")

        received = exchange(gateway, get.replace(KEY.encode(), KEY.encode() + b" \t"))

        assert statuses(received) == [404]
        assert b"x-request-id: mine\r" in received

    def test_head_has_the_headers_of_get_and_no_body(self, gateway: GatewayProcess) -> None:
        received = exchange(gateway, request("HEAD", b"/healthz"))

        assert statuses(received) == [200]
        assert b"content-length: 15\r\n" in received
        assert received.endswith(b"\r\n\r\n")


class TestUpgrade:
    """Java's client and ``curl --http2`` offer h2c with each request; a server may ignore the offer (RFC 9110, 7.8)."""

    OFFER = ("Upgrade: h2c", "HTTP2-Settings: AAMAAABk")

    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_offer_is_ignored_and_the_body_is_read(self, gateway: GatewayProcess, chunked: bool, apart: bool) -> None:
        body = b'{"label": "java"}'
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        head = put("offer", length, *self.OFFER, connection="Upgrade, HTTP2-Settings, close")
        sent_body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body

        received = exchange(gateway, *([head, sent_body] if apart else [head + sent_body]))

        assert statuses(received) == [200]
        assert b'"label":"java"' in received

    @pytest.mark.parametrize("apart", [False, True])
    def test_body_never_becomes_a_request(self, gateway: GatewayProcess, apart: bool) -> None:
        # Given a session, and a body that looks like the request that deletes it
        with gateway.client() as client:
            client.put("/sessions/victim", json={}).raise_for_status()
            body = request("DELETE", b"/api/v1/sessions/victim" + PLACE + b"&mode=delete")
            head = put("other", f"Content-Length: {len(body)}", *self.OFFER, connection="Upgrade")

            # When it comes with an offer, then the gateway reads it as a body, which is invalid JSON
            received = exchange(gateway, *([head, body] if apart else [head + body]), until_idle=True)

            assert statuses(received) == [400]
            assert b"invalid_json" in received
            assert client.get("/sessions/victim").status_code == 200

    def test_offers_may_be_pipelined_and_are_not_logged(self, gateway: GatewayProcess) -> None:
        offer = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

        received = exchange(gateway, 500 * offer + LAST_GET)

        assert statuses(received) == 501 * [200]
        assert "upgrade" not in gateway.log.lower()


class TestHead:
    @pytest.mark.parametrize("line", [b"X-Long: " + 1000 * b"a" + b"\r\n", 1000 * b"a"], ids=["lines", "one line"])
    def test_too_long_is_refused(self, gateway: GatewayProcess, line: bytes) -> None:
        """The client sends everything before it reads. It gets the answer, and no reset."""
        received = exchange(gateway, GET[:-2] + b"X-First: ", *(64 * line for _ in range(4)))

        assert "exceed 64 KiB" in assert_refused(received)

    def test_without_end_is_cut_off(self, gateway: GatewayProcess) -> None:
        with gateway.connect() as connection:
            connection.sendall(GET[:-2] + b"X-First: ")

            def send_without_end() -> None:
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    connection.sendall(1000 * b"a")
                    time.sleep(0.001)

            with pytest.raises(ConnectionError):
                send_without_end()


class TestPipelining:
    def test_half_closed_client_gets_all_its_answers(self, gateway: GatewayProcess) -> None:
        good = put("half-closed", "Content-Length: 2", body=b"{}", connection="keep-alive")
        with gateway.connect() as connection:
            connection.sendall(3 * good + GET)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk

        # A write that waits for a lease brings an interim response, which clients ignore.
        assert [status for status in statuses(received) if status >= 200] == [200, 200, 200, 200]

    def test_data_after_the_last_request_is_ignored(self, gateway: GatewayProcess) -> None:
        received = exchange(gateway, put("last", "Content-Length: 2", body=b"{}"), b"\r\nmore")

        assert statuses(received) == [200]

    def test_memory_is_bounded(self, gateway: GatewayProcess) -> None:
        """A client pipelines writes for three seconds and reads nothing; the gateway stops reading from it."""
        good = 100 * put("pipelined", "Content-Length: 2", body=b"{}", connection="keep-alive")
        before = gateway.resident_bytes()
        sent = 0
        with gateway.connect() as connection:
            connection.settimeout(0.5)
            end = time.monotonic() + 3
            with contextlib.suppress(TimeoutError):
                while time.monotonic() < end:
                    sent += connection.send(good)

            assert gateway.resident_bytes() - before < 8 * 1024 * 1024, sent

    @pytest.mark.timeout(240)
    def test_memory_of_many_connections_is_bounded(self, gateway: GatewayProcess) -> None:
        """200 clients send 1,274 requests each at once, without a valid key."""
        secret = "fmk_" + 43 * "z"
        guess = f"GET /api/v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
        before = gateway.resident_bytes()
        most = 0
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(gateway.connect()) for _ in range(200)]
            for client in clients:
                client.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    client.send(1274 * guess)
                most = max(most, gateway.resident_bytes())
            for client in clients:
                client.settimeout(20)
                # 503 where the machine is too slow to load the keys meanwhile
                assert statuses(client.recv(1024))[0] in (401, 503)
                most = max(most, gateway.resident_bytes())

        assert most - before < 8 * 1024 * 1024


def test_connections_over_the_limit_get_503(shared_redis: RedisServer) -> None:
    with GatewayProcess(shared_redis.url, "--max-connections", "2") as gateway, contextlib.ExitStack() as stack:
        # Given the largest number of connections, each in use
        kept = [stack.enter_context(gateway.connect()) for _ in range(2)]
        for connection in kept:
            assert get(connection) == [200]

        # When another client connects, then it gets an answer
        received = exchange(gateway, LAST_GET)
        assert statuses(received) == [503]
        assert b"retry-after: 1\r\n" in received
        assert b'"code":"too_many_connections"' in received

        # And the others continue, and make room when they close
        assert get(kept[0]) == [200]
        kept.pop().close()
        deadline = time.monotonic() + 20
        while statuses(exchange(gateway, LAST_GET)) != [200]:
            assert time.monotonic() < deadline


def test_old_h11_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "version", lambda name: "0.14.0")

    with pytest.raises(server.OutdatedServerError, match=r"h11 0\.14\.0 is too old; .*pip install"):
        server.server_config(lambda: None, shutdown_grace_s=1.0)


def test_no_private_name_of_the_packages_is_used() -> None:
    """Uvicorn, prometheus_client and Starlette may change what begins with an underscore."""
    sources = Path(server.__file__).parent.glob("*.py")
    private = re.compile(r"(uvicorn\.protocols|metrics_core|\b(stock|_stock|config|server|app|router|storage)\._[a-z])")
    assert [path.name for path in sources if private.search(path.read_text())] == []
