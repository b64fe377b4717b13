"""The gateway as a process: options, the first try, sockets, signals."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gateway.__main__ import main
from gateway.server import server_config
from sessionstore import SessionStore
from sessionstore.api_keys.model import is_secret
from sessionstore.protocol.keyspace import EnvironmentKeyspace

from ..support.redis_server import RedisServer, free_port
from .conftest import AUTHORIZATION, KEY, assert_error
from .process import GatewayProcess, run_gateway


@pytest.fixture(scope="module")
def embedded() -> Iterator[GatewayProcess]:
    """On the embedded store, with nothing set: as `make run` starts it."""
    with GatewayProcess(None) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def gateway(shared_redis: RedisServer) -> Iterator[GatewayProcess]:
    with GatewayProcess(shared_redis.url, "--prefix", "process") as process:
        yield process


class TestFirstTry:
    def test_says_that_state_is_lost(self, embedded: GatewayProcess) -> None:
        lines = [line for line in embedded.output.splitlines() if "lost" in line]

        assert len(lines) == 1
        assert "memory" in lines[0]

    def test_prints_a_key_and_nothing_logs_it(self, embedded: GatewayProcess) -> None:
        keys = set(re.findall(r"fmk_[A-Za-z0-9_-]+", embedded.output))

        assert len(keys) == 1
        assert is_secret(keys.pop())
        assert "fmk_" not in embedded.log

    def test_printed_curl_lines_work_when_pasted(self, embedded: GatewayProcess) -> None:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        lines = [line.strip() for line in embedded.output.splitlines() if line.strip().startswith("curl ")]

        answers = [
            json.loads(subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=30).stdout)
            for line in lines
        ]

        assert len(answers) == 3
        put, got, deleted = answers
        assert put["overrides"] == ["ovr_extraMock"]
        assert got == put
        assert deleted == {"ok": True, "mode": "delete"}

    def test_page_that_it_names_is_there(self, embedded: GatewayProcess) -> None:
        page = re.search(r"http://\S+/docs", embedded.output)
        assert page is not None
        with embedded.client() as client:
            assert client.get(page[0]).headers["content-type"].startswith("text/html")

    def test_other_processes_reach_the_embedded_store(self, embedded: GatewayProcess) -> None:
        url = re.search(r"redis://127\.0\.0\.1:\d+/0", embedded.output)
        key = re.search(r"fmk_[A-Za-z0-9_-]+", embedded.output)
        assert url is not None
        assert key is not None
        with SessionStore.from_url(url[0], deadline_s=20) as store:
            store.environment("checkout", "staging").put("from-a-proxy", label="x")
        with embedded.client() as client:
            response = client.get("/sessions/from-a-proxy", headers={"Authorization": f"Bearer {key[0]}"})

        assert response.json()["label"] == "x"

    def test_chosen_key_is_used_and_not_shown(self) -> None:
        with GatewayProcess(None, SESSIONSTORE_API_KEY=KEY) as gateway, gateway.client() as client:
            assert client.put("/sessions/a", json={}).status_code == 200
            assert KEY not in gateway.output + gateway.log
            assert "$SESSIONSTORE_API_KEY" in gateway.output


class TestOptions:
    def test_help_names_every_option_and_variable(self) -> None:
        done = run_gateway("--help")

        assert done.returncode == 0
        assert done.stderr == ""
        for name in (
            "host",
            "port",
            "redis-url",
            "prefix",
            "ttl",
            "lease",
            "deadline",
            "shutdown-grace",
            "rate-limit",
            "metrics",
            "log-level",
            "no-access-log",
        ):
            assert f"--{name}" in done.stdout
        for text in ("SESSIONSTORE_REDIS_URL", "SESSIONSTORE_API_KEY", "127.0.0.1", "8080", "86400"):
            assert text in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "variables", "words"),
        [
            (["--prot", "8080"], {}, ["--prot"]),
            (["--por", "8080"], {}, ["--por"]),
            (["extra"], {}, ["extra"]),
            (["--port", "http"], {}, ["--port", "65535"]),
            (["--port", "65536"], {}, ["--port", "65535"]),
            ([], {"SESSIONSTORE_PORT": "tcp://10.0.0.1:80"}, ["SESSIONSTORE_PORT", "65535"]),
            (["--log-level", "loud"], {}, ["--log-level", "warning"]),
            (["--ttl", "0"], {}, ["--ttl", "seconds"]),
            (["--ttl", "0.999"], {}, ["--ttl", "seconds from 1 to"]),
            (["--deadline", "nan"], {}, ["--deadline", "0.05 to 60"]),
            ([], {"SESSIONSTORE_ACCESS_LOG": "maybe"}, ["SESSIONSTORE_ACCESS_LOG", "on or off"]),
            (["--redis-url", "http://user:s3cret@localhost"], {}, ["--redis-url", "redis://"]),
            (["--redis-url", "redis://:s3cret@localhost:port"], {}, ["--redis-url", "redis://"]),
            (["--rate-limit", "often"], {}, ["--rate-limit", "120/60"]),
            ([], {"SESSIONSTORE_API_KEY": "fmk_s3cret"}, ["SESSIONSTORE_API_KEY", "43"]),
            (["--prefix", "a:b"], {}, ["--prefix"]),
        ],
        ids=str,
    )
    def test_that_can_not_be_used_is_refused_in_words(
        self,
        arguments: list[str],
        variables: dict[str, str],
        words: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

        code = main(arguments)

        output, errors = capsys.readouterr()
        assert code == 2
        assert output == ""
        assert "s3cret" not in errors
        for word in words:
            assert word in errors

    def test_redis_without_any_key_is_refused_and_the_command_that_it_names_makes_one(
        self, shared_redis: RedisServer, prefix: str
    ) -> None:
        done = run_gateway("--redis-url", shared_redis.url, "--prefix", prefix, "--port", "0")
        assert done.returncode == 1
        assert "sessionstore keys create" in done.stderr
        command = re.search(r"export SESSIONSTORE_API_KEY=.*", done.stderr)
        assert command is not None

        made = subprocess.run(
            ["sh", "-c", f'{command[0]}; printf %s "$SESSIONSTORE_API_KEY"'],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )

        assert is_secret(made.stdout)

    def test_port_that_is_in_use_is_one_clear_sentence(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])

            done = run_gateway("--port", port)

        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        for word in ("127.0.0.1", port, "in use", "--port"):
            assert word in done.stderr

    def test_variables_stand_for_options_and_options_win(self, shared_redis: RedisServer) -> None:
        variables = {
            "SESSIONSTORE_REDIS_URL": shared_redis.url,
            "SESSIONSTORE_PREFIX": "variables",
            "SESSIONSTORE_API_KEY": KEY,
            "SESSIONSTORE_PORT": str(free_port()),
            "SESSIONSTORE_HOST": "localhost",
            "SESSIONSTORE_ACCESS_LOG": "off",
            "SESSIONSTORE_TTL": "",
        }
        with GatewayProcess(None, **variables) as gateway, gateway.client() as client:
            assert str(gateway.port) != variables["SESSIONSTORE_PORT"]  # --port 0 won
            assert client.put("/sessions/a", json={}).status_code == 200
            assert gateway.output == ""
            assert "gateway.access" not in gateway.log
        with SessionStore.from_url(shared_redis.url, prefix="variables") as store:
            session = store.environment("checkout", "staging").get("a")
        assert session is not None
        assert session.expires_at - session.created_at == 86_400_000


class TestSocket:
    def exchange(self, gateway: GatewayProcess, *segments: bytes, until_idle: bool = False) -> tuple[bytes, bytes]:
        """Send bytes, and read to the end of the connection, or until nothing comes; returns head and body."""
        with gateway.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for segment in segments:
                connection.sendall(segment)
                time.sleep(0.05)  # the next one comes by itself, as far as that can be had
            received = connection.recv(65536)
            if until_idle:
                connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while chunk := connection.recv(65536):
                    received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        return head, body

    def request(self, method: str, target: bytes, *headers: str, body: bytes = b"") -> bytes:
        lines = [f"Authorization: Bearer {KEY}", "Host: localhost", "Connection: close", *headers]
        return method.encode() + b" " + target + b" HTTP/1.1\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    @pytest.mark.parametrize(
        ("segment", "key"),
        [("a%2Fb", "a/b"), ("..", ".."), ("%2e%2e", ".."), ("a%3Fb", "a?b"), ("%23", "#"), ("%20", None)],
    )
    def test_path_is_taken_as_it_was_sent(self, gateway: GatewayProcess, segment: str, key: str | None) -> None:
        target = f"/api/v1/sessions/{segment}?project=checkout&environment=staging".encode()
        head, body = self.exchange(
            gateway, self.request("PUT", target, "Content-Type: application/json", "Content-Length: 2", body=b"{}")
        )

        if key is None:
            assert head.startswith(b"HTTP/1.1 422 ")
        else:
            assert head.startswith(b"HTTP/1.1 200 ")
            assert json.loads(body)["sessionKey"] == key

    @pytest.mark.parametrize(
        "request_line", [b"GET /\xff HTTP/1.1", b"GET / HTTP/9", b"\x00\x01", b"GET /a b c HTTP/1.1"]
    )
    def test_what_is_not_http_is_400_in_the_envelope(self, gateway: GatewayProcess, request_line: bytes) -> None:
        head, body = self.exchange(gateway, request_line + b"\r\nHost: localhost\r\n\r\n")

        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/json" in head
        assert json.loads(body)["code"] == "bad_request"

        assert re.search(rb"x-request-id: [0-9a-f]{16}\r", head)

    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_an_offer_to_upgrade_is_ignored_and_the_body_is_read(
        self, gateway: GatewayProcess, chunked: bool, apart: bool
    ) -> None:
        # As Java's client and `curl --http2` do by default, where the scheme is http
        offer = ["Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "Content-Type: application/json"]
        body = b'{"label": "java"}'
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        target = b"/api/v1/sessions/offer?project=checkout&environment=staging"
        request = self.request("PUT", target, length, *offer)
        request = request.replace(b"Connection: close", b"Connection: Upgrade, HTTP2-Settings, close")
        sent_body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body

        head, answer = self.exchange(gateway, *([request, sent_body] if apart else [request + sent_body]))

        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(answer)["label"] == "java"

    @pytest.mark.parametrize("apart", [False, True])
    def test_a_body_never_becomes_a_request(self, gateway: GatewayProcess, apart: bool) -> None:
        # Given a session, and a body that looks like the request that deletes it
        with gateway.client() as client:
            client.put("/sessions/victim", json={}).raise_for_status()
            target = b"/api/v1/sessions/victim?mode=delete&project=checkout&environment=staging"
            body = self.request("DELETE", target)
            place = b"/api/v1/sessions/other?project=checkout&environment=staging"
            headers = (f"Content-Length: {len(body)}", "Upgrade: h2c", "Content-Type: application/json")
            request = self.request("PUT", place, *headers)
            request = request.replace(b"Connection: close", b"Connection: Upgrade")

            # When it comes with an offer to upgrade, then it is a body, and a bad one
            head, answer = self.exchange(gateway, *([request, body] if apart else [request + body]), until_idle=True)
            assert head.startswith(b"HTTP/1.1 400 ")
            assert json.loads(answer)["code"] == "invalid_json"
            assert client.get("/sessions/victim").status_code == 200

    def test_requests_with_offers_may_follow_on_one_another(self, gateway: GatewayProcess) -> None:
        offers = (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n") * 500
        with gateway.connect() as connection:
            connection.sendall(offers + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert received.count(b"HTTP/1.1 200 ") == 501

    def test_connect_is_400(self, gateway: GatewayProcess) -> None:
        head, body = self.exchange(gateway, b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n")

        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["code"] == "bad_request"

    @pytest.mark.parametrize("line", [b"X-Long: " + 1000 * b"a" + b"\r\n", 1000 * b"a"])
    def test_a_head_that_is_too_long_is_refused(self, gateway: GatewayProcess, line: bytes) -> None:
        # Given a client that sends all it has before it reads, then it gets the answer, and no reset
        head, body = self.exchange(
            gateway, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-First: ", *(64 * line for _ in range(4))
        )

        assert head.startswith(b"HTTP/1.1 400 ")
        assert "larger than 64 KiB" in json.loads(body)["error"]

    def test_a_head_that_does_not_end_is_cut_off(self, gateway: GatewayProcess) -> None:
        with gateway.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-First: ")

            def send_without_end() -> None:
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    connection.sendall(1000 * b"a")
                    time.sleep(0.001)

            with pytest.raises(ConnectionError):
                send_without_end()

    def test_requests_before_one_that_is_none_are_answered_first(self, gateway: GatewayProcess) -> None:
        target = b"/api/v1/sessions/before?project=checkout&environment=staging"
        put = self.request("PUT", target, "Content-Length: 2", "Content-Type: application/json", body=b"{}")
        put = put.replace(b"Connection: close\r\n", b"")

        head, rest = self.exchange(gateway, put + put + b"\x00\x01\r\n\r\n")

        assert head.startswith(b"HTTP/1.1 200 ")
        assert re.findall(rb"HTTP/1.1 (\d+) ", rest) == [b"200", b"400"]
        assert rest.index(b"HTTP/1.1 400 ") < rest.index(b"bad_request")

    def test_a_body_that_breaks_off_changes_nothing_where_it_means_nothing_either(
        self, gateway: GatewayProcess
    ) -> None:
        place = b"?project=checkout&environment=staging"
        with gateway.client() as client:
            client.put("/sessions/kept", json={"overrides": ["ovr_a"]}).raise_for_status()
            for method, target in (
                ("POST", b"/overrides/ovr_b" + place),
                ("DELETE", b"/overrides/ovr_a" + place),
                ("DELETE", place),
                ("DELETE", place + b"&mode=delete"),
            ):
                request = self.request(method, b"/api/v1/sessions/kept" + target, "Transfer-Encoding: chunked")
                head, _ = self.exchange(gateway, request + b"2\r\n{}\r\nnot a length\r\n")
                assert head.startswith(b"HTTP/1.1 400 ")
                assert client.get("/sessions/kept").json()["overrides"] == ["ovr_a"]
                # and a whole one is no matter
                if method == "POST":
                    head, _ = self.exchange(gateway, request + b"2\r\n{}\r\n0\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200 ")
                    client.delete("/sessions/kept/overrides/ovr_b").raise_for_status()

    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("before", [0, 2])
    def test_a_body_that_breaks_off_changes_nothing(self, gateway: GatewayProcess, before: int, apart: bool) -> None:
        get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        target = b"/api/v1/sessions/broken?project=checkout&environment=staging"
        put = self.request("PUT", target, "Transfer-Encoding: chunked", "Content-Type: application/json")
        body = b'd\r\n{"label": "x"\r\nnot a length\r\n'

        head, rest = (
            self.exchange(gateway, before * get + put, body)
            if apart
            else self.exchange(gateway, before * get + put + body)
        )

        answers = re.findall(rb"HTTP/1.1 (\d+) ", head + rest)
        assert answers == before * [b"200"] + [b"400"]
        with gateway.client() as client:
            assert client.get("/sessions/broken").status_code == 404

    def test_white_space_around_a_value_is_no_part_of_it(self, gateway: GatewayProcess) -> None:
        target = b"/api/v1/sessions/spaces?project=checkout&environment=staging"
        request = self.request("GET", target, "X-Request-Id: \t mine \t")

        head, _ = self.exchange(gateway, request.replace(KEY.encode(), KEY.encode() + b" \t"))

        assert head.startswith(b"HTTP/1.1 404 ")
        assert b"x-request-id: mine\r" in head

    def test_chunked_body(self, gateway: GatewayProcess) -> None:
        target = b"/api/v1/sessions/chunked?project=checkout&environment=staging"
        chunked = ("Content-Type: application/json", "Transfer-Encoding: chunked")

        head, body = self.exchange(
            gateway,
            self.request("PUT", target, *chunked, body=b'5\r\n{"lab\r\na\r\nel": "a" }\r\n0\r\n\r\n'),
        )

        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body)["label"] == "a"

    def test_chunked_body_that_is_too_large_is_413_before_it_ends(self, gateway: GatewayProcess) -> None:
        target = b"/api/v1/sessions/huge?project=checkout&environment=staging"
        chunked = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        with gateway.connect() as connection:
            connection.sendall(self.request("PUT", target, *chunked))
            connection.sendall((b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 5)
            received = b""
            while b"body_too_large" not in received:
                chunk = connection.recv(65536)
                assert chunk, received
                received += chunk

        assert received.startswith(b"HTTP/1.1 413 ")
        with gateway.client() as client:
            assert client.get("/sessions/huge").status_code == 404

    def test_connection_is_kept_after_an_error(self, gateway: GatewayProcess) -> None:
        with gateway.client() as client:
            assert (
                client.put(
                    "/sessions/kept", content=b"x" * 100_000, headers={"Content-Type": "application/json"}
                ).status_code
                == 413
            )
            assert client.get("/sessions/nobody").status_code == 404
            assert client.put("/sessions/kept", json={}).status_code == 200


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_ends_with_0(self, shared_redis: RedisServer, number: signal.Signals) -> None:
        with GatewayProcess(shared_redis.url) as gateway, gateway.client() as client:
            assert client.get(f"http://{gateway.host}:{gateway.port}/healthz").status_code == 200

            gateway.signal(number)

            assert gateway.wait() == 0
            assert "Traceback" not in gateway.log

    def test_request_in_flight_is_finished_and_new_ones_are_not_taken(
        self, shared_redis: RedisServer, prefix: str
    ) -> None:
        with GatewayProcess(shared_redis.url, "--prefix", prefix) as gateway, gateway.connect() as connection:
            # Given a PUT whose body is still to come: 100 says that the gateway waits for it
            head = (
                "PUT /api/v1/sessions/a?project=checkout&environment=staging HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: {AUTHORIZATION['Authorization']}\r\nContent-Type: application/json\r\n"
                "Content-Length: 13\r\nExpect: 100-continue\r\n\r\n"
            )
            connection.sendall(head.encode())
            assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")

            # When it is told to stop, and has closed its door
            gateway.signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            with contextlib.suppress(OSError):
                while time.monotonic() < deadline:
                    gateway.connect().close()
            connection.sendall(b'{"label":"x"}')

            # Then the PUT is answered, and it has taken place
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b'"label":"x"' in answer
            assert gateway.wait() == 0

    def test_request_that_outlasts_the_grace_is_answered_in_the_envelope(self, shared_redis: RedisServer) -> None:
        # Given a PUT that waits for a view which never acknowledges
        options = ("--shutdown-grace", "0.3", "--lease", "20", "--prefix", "grace")
        lease = EnvironmentKeyspace("grace", "checkout", "staging")
        with (
            shared_redis.client() as redis,
            GatewayProcess(shared_redis.url, *options) as gateway,
            gateway.client() as client,
            concurrent.futures.ThreadPoolExecutor(1) as threads,
        ):
            redis.zadd(lease.leases, {"dead": 9e15})
            redis.zadd(lease.acks, {"dead": 0})
            put = threads.submit(client.put, "/sessions/ci-42", json={})
            while not redis.exists(lease.session("ci-42")):
                time.sleep(0.01)

            gateway.signal(signal.SIGTERM)
            response = put.result(20)

            assert_error(response, 503, "store_unavailable", "stopping", "may have been applied")
            assert response.headers["retry-after"]
            assert gateway.wait() == 0
            assert "Traceback" not in gateway.log

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_one_that_comes_while_redis_keeps_the_start_waiting(self, number: signal.Signals) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.settimeout(20)
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "--redis-url", url, "--port", "0", "--deadline", "60"],
                stderr=subprocess.PIPE,
                env={**os.environ, "SESSIONSTORE_API_KEY": KEY},
                text=True,
            )
            connection, _ = silent.accept()
            process.send_signal(number)
            with connection:
                _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")

    def test_request_that_takes_too_long_is_cut_off(self, shared_redis: RedisServer) -> None:
        with GatewayProcess(shared_redis.url, "--shutdown-grace", "0.1") as gateway, gateway.connect() as connection:
            connection.sendall(
                b"PUT /api/v1/sessions/a?project=checkout&environment=staging HTTP/1.1\r\nHost: localhost\r\n"
                b"Authorization: %b\r\nContent-Type: application/json\r\n"
                b"Content-Length: 13\r\nExpect: 100-continue\r\n\r\n" % AUTHORIZATION["Authorization"].encode()
            )
            assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")

            gateway.signal(signal.SIGTERM)

            assert gateway.wait() == 0


def test_without_httptools_what_is_not_http_is_answered_in_the_envelope_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    monkeypatch.delitem(sys.modules, "gateway.protocol", raising=False)
    config = server_config(lambda: None, shutdown_grace_s=1.0)
    assert isinstance(config.http, type)
    assert issubclass(config.http, H11Protocol)

    protocol = config.http(config, ServerState(), {}, asyncio.new_event_loop())
    transport = protocol.transport = Mock()
    protocol.send_400_response("Invalid HTTP request received.")
    protocol.loop.close()

    head, _, body = transport.write.call_args.args[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["code"] == "bad_request"
    transport.close.assert_called_once_with()
