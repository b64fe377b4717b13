"""The gateway as a process: the first try, start and signals."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from sessionstore import SessionStore
from sessionstore.api_keys.model import is_secret
from sessionstore.protocol.keyspace import EnvironmentKeyspace

from ..support.gateway import AUTHORIZATION, KEY, assert_error
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer


@pytest.fixture(scope="module")
def embedded() -> Iterator[GatewayProcess]:
    """On the embedded store, as `make run` starts it."""
    with GatewayProcess(None, "--embedded-socket") as gateway:
        yield gateway


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

    def test_other_processes_reach_the_embedded_store(self, embedded: GatewayProcess) -> None:
        url = re.search(r"unix:///\S+", embedded.output)
        key = re.search(r"fmk_[A-Za-z0-9_-]+", embedded.output)
        assert url is not None
        assert key is not None
        with SessionStore.from_url(url[0], deadline_s=20) as store:
            store.environment("checkout", "staging").put("from-a-proxy", label="x")
        with embedded.client() as client:
            response = client.get("/sessions/from-a-proxy", headers={"Authorization": f"Bearer {key[0]}"})

        assert response.json()["label"] == "x"

    @pytest.mark.parametrize(("options", "sockets"), [((), 0), (("--embedded-socket",), 1)])
    def test_the_store_has_no_way_in_unless_asked_for(self, options: tuple[str, ...], sockets: int) -> None:
        with GatewayProcess(None, *options) as gateway:
            assert gateway.listeners() == {"tcp": 1, "unix": sockets}
            assert ("none; --embedded-socket opens one" in gateway.output) == (not options)

    def test_chosen_key_is_used_and_not_shown(self) -> None:
        with GatewayProcess(None, SESSIONSTORE_API_KEY=KEY) as gateway, gateway.client() as client:
            assert client.put("/sessions/a", json={}).status_code == 200
            assert KEY not in gateway.output + gateway.log
            assert "$SESSIONSTORE_API_KEY" in gateway.output


def test_what_is_loaded_is_not_collected_again() -> None:
    """A full collection would look at all modules, while every request waits."""
    program = (
        "import gc, uvicorn; from gateway.serve import run\n"
        "async def serve(self, sockets): print(gc.get_freeze_count() > 10_000)\n"
        "uvicorn.Server.serve = serve; raise SystemExit(run(['--embedded', '--port', '0'], 'gateway'))"
    )

    started = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert started.stdout.endswith("True\n")


class TestClientThatIsGone:
    @pytest.mark.parametrize("reset", [False, True])
    def test_ends_the_wait_of_its_write(self, shared_redis: RedisServer, prefix: str, reset: bool) -> None:
        # Given a PUT that waits for a view which never acknowledges
        lease = EnvironmentKeyspace(prefix, "checkout", "staging")
        with (
            shared_redis.client() as redis,
            GatewayProcess(shared_redis.url, "--lease", "20", "--prefix", prefix) as gateway,
        ):
            redis.zadd(lease.leases, {"dead": 9e15})
            redis.zadd(lease.acks, {"dead": 0})
            with gateway.connect() as connection:
                connection.sendall(
                    b"PUT /api/v1/sessions/ci-42?project=checkout&environment=staging HTTP/1.1\r\nHost: localhost\r\n"
                    b"Authorization: %b\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                    % AUTHORIZATION["Authorization"].encode()
                )
                while not redis.exists(lease.session("ci-42")):
                    time.sleep(0.01)
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone = time.monotonic()

            # When its client closes the connection, then the gateway stops waiting, long before the lease ends
            while '"status":499' not in gateway.log:
                assert time.monotonic() < gone + 15, gateway.log
                time.sleep(0.01)


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
            # Given a PUT without its body yet; the 100 shows that the gateway waits for it
            head = (
                "PUT /api/v1/sessions/a?project=checkout&environment=staging HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: {AUTHORIZATION['Authorization']}\r\nContent-Type: application/json\r\n"
                "Content-Length: 13\r\nExpect: 100-continue\r\n\r\n"
            )
            connection.sendall(head.encode())
            assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")

            # When it gets SIGTERM, and no longer accepts connections
            gateway.signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            with contextlib.suppress(OSError):
                while time.monotonic() < deadline:
                    gateway.connect().close()
            connection.sendall(b'{"label":"x"}')

            # Then the PUT is answered and applied
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b'"label":"x"' in answer
            assert gateway.wait() == 0

    def test_request_that_outlasts_the_grace_is_answered_in_the_envelope(self, shared_redis: RedisServer) -> None:
        # Given a PUT that waits for a view that never acknowledges
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

            assert_error(response, 503, "outcome_unknown", "stopping", "whole or not at all")
            assert response.headers["retry-after"]
            assert gateway.wait() == 0
            assert "Traceback" not in gateway.log

    def test_with_clients_that_do_not_read_it_logs_json_only(self, shared_redis: RedisServer, prefix: str) -> None:
        # Given clients that ask for more than the gateway can send, and read nothing
        options = ("--shutdown-grace", "0.2", "--rate-limit", "off", "--prefix", prefix)
        with GatewayProcess(shared_redis.url, *options) as gateway, gateway.client() as client:
            overrides = [f"ovr_{number:0>120}" for number in range(200)]
            for number in range(10):
                client.put(f"/sessions/ci-{number}", json={"overrides": overrides}).raise_for_status()
            lists = 200 * (
                "GET /api/v1/sessions?project=checkout&environment=staging HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: {AUTHORIZATION['Authorization']}\r\n\r\n"
            )
            with contextlib.ExitStack() as stack:
                for _ in range(10):
                    connection = stack.enter_context(gateway.connect())
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.sendall(lists.encode())
                    assert connection.recv(1024).startswith(b"HTTP/1.1 200 ")

                # When it is told to stop
                gateway.signal(signal.SIGTERM)

                # Then it ends, and every line of its log is JSON
                assert gateway.wait() == 0
            assert all(isinstance(json.loads(line), dict) for line in gateway.log.splitlines())
            assert "Traceback" not in gateway.log

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_ends_a_start_that_waits_for_redis(self, number: signal.Signals) -> None:
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
