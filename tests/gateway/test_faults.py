"""Faults of Redis, over HTTP: 503 within the deadline, all or nothing of a write, and recovery without a restart."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import redis

from sessionstore import SessionStore

from ..support.gateway import PLACE, assert_error
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer

#: Seconds that the gateway may take for one call. The clients of these tests time out after 20.
DEADLINE_S = "1"
LEASE_S = "0.1"

BEFORE = {
    "label": "before",
    "scenario": "scn_before",
    "overrides": ["ovr_a", "ovr_b"],
    "globalDelayMs": 1,
    "globalDelayMaxMs": 2,
}
AFTER = {
    "label": "after",
    "scenario": "scn_after",
    "overrides": ["ovr_c"],
    "globalDelayMs": 3,
    "globalDelayMaxMs": 4,
}


@pytest.fixture
def gateway(own_redis: RedisServer) -> Iterator[GatewayProcess]:
    with GatewayProcess(own_redis.url, "--deadline", DEADLINE_S, "--lease", LEASE_S) as process:
        yield process


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        assert client.put("/sessions/ci-42", json=BEFORE).status_code == 200
        yield client


def state(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    document = response.json()
    return {name: document[name] for name in BEFORE}


def assert_unavailable(response: httpx.Response, *words: str) -> None:
    """Check a 503, whose code tells whether the write may have been applied."""
    unknown = "whole or not at all" in response.text
    assert_error(response, 503, "outcome_unknown" if unknown else "store_unavailable", *words)
    assert int(response.headers["retry-after"]) >= 1


def outside(client: httpx.Client, path: str) -> httpx.Response:
    """GET a path that is not below /api/v1."""
    return client.get(client.base_url.copy_with(path=path), params={})


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again; twenty seconds are a failure."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


#: The calls that need Redis.
CALLS: tuple[Callable[[httpx.Client], httpx.Response], ...] = (
    lambda client: client.put("/sessions/ci-42", json=AFTER),
    lambda client: client.post("/sessions/ci-42/overrides/ovr_new"),
    lambda client: client.delete("/sessions/ci-42/overrides/ovr_a"),
    lambda client: client.delete("/sessions/ci-42"),
    lambda client: client.delete("/sessions/ci-42", params={**PLACE, "mode": "delete"}),
    lambda client: client.get("/sessions/ci-42"),
    lambda client: client.get("/sessions"),
    lambda client: client.get("/sessions/ci-42", params={"project": "checkout"}),
    lambda client: outside(client, "/readyz"),
)


class TestDown:
    def test_every_call_is_503_and_works_again_once_redis_is_back(
        self, own_redis: RedisServer, gateway: GatewayProcess, client: httpx.Client
    ) -> None:
        own_redis.stop()

        for call in CALLS:
            assert_unavailable(call(client), "nothing was changed")
        assert outside(client, "/healthz").status_code == 200

        own_redis.start()
        assert outside(client, "/readyz").status_code == 200
        assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER
        assert state(client.get("/sessions/ci-42")) == AFTER
        assert "traceback" not in gateway.log

    def test_restart_between_two_requests_is_not_noticed(self, own_redis: RedisServer, client: httpx.Client) -> None:
        # Given connections in the gateway's pool
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            assert {r.status_code for r in threads.map(client.get, ["/sessions/ci-42"] * 32)} == {200}

        own_redis.stop()
        own_redis.start()

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            assert {r.status_code for r in threads.map(client.get, ["/sessions/ci-42"] * 32)} == {404}
        assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER

    def test_gateway_starts_while_redis_is_down(self, own_redis: RedisServer) -> None:
        own_redis.stop()
        with (
            GatewayProcess(own_redis.url, "--deadline", DEADLINE_S, "--lease", LEASE_S) as gateway,
            gateway.client() as client,
        ):
            assert_unavailable(outside(client, "/readyz"))
            assert "keys can't be loaded, so only the bootstrap key is known" in gateway.log
            # The details are for the operator, not for the caller.
            until(lambda: gateway.log.count("Connection refused") == 2)
            own_redis.start()
            assert outside(client, "/readyz").status_code == 200
            assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER

    def test_loaded_keys_stay_valid_for_the_grace(self, own_redis: RedisServer) -> None:
        with SessionStore.from_url(own_redis.url) as store:
            secret = store.api_keys.create("ci").secret
        with (
            GatewayProcess(own_redis.url) as patient,
            GatewayProcess(own_redis.url, "--key-grace", "1s") as strict,
            patient.client() as first,
            strict.client() as second,
        ):
            # A query is checked after the key, and without Redis.
            def status(client: httpx.Client) -> int:
                headers = {"Authorization": f"Bearer {secret}"}
                return client.get("/sessions/ci-42", params={"nonsense": "1"}, headers=headers).status_code

            assert status(first) == status(second) == 422
            own_redis.stop()

            until(lambda: status(second) == 503)
            assert status(first) == 422

    def test_scripts_that_redis_has_forgotten_are_sent_again(
        self, own_redis: RedisServer, client: httpx.Client
    ) -> None:
        with own_redis.client() as behind:
            behind.script_flush()

        assert state(client.get("/sessions/ci-42")) == BEFORE
        assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER

    def test_log_says_why_and_no_password(self, own_redis: RedisServer) -> None:
        url = own_redis.url.replace("redis://", "redis://:s3cret@")
        with GatewayProcess(url, "--deadline", DEADLINE_S) as gateway, gateway.client() as client:
            own_redis.stop()
            response = client.get("/sessions/ci-42", headers={"X-Request-Id": "ci-7"})

            assert_unavailable(response)
            assert "ci-7" in gateway.log
            assert "s3cret" not in gateway.log + response.text


class TestRefusing:
    """Redis refuses writes: each write is answered with 503, and nothing changes."""

    @pytest.mark.parametrize(
        ("trouble", "cure", "words"),
        [
            (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"], "out of memory"),
            (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"], "read-only"),
            (
                ["CONFIG", "SET", "min-replicas-to-write", "1"],
                ["CONFIG", "SET", "min-replicas-to-write", "0"],
                "too few replicas",
            ),
        ],
        ids=["OOM", "READONLY", "NOREPLICAS"],
    )
    def test_writes(
        self, own_redis: RedisServer, client: httpx.Client, trouble: list[str], cure: list[str], words: str
    ) -> None:
        with own_redis.client() as behind:
            behind.execute_command(*trouble)
            assert_unavailable(client.put("/sessions/ci-42", json=AFTER), words, "nothing was changed")
            assert_unavailable(client.put("/sessions/new", json=AFTER), words)
            assert_unavailable(client.post("/sessions/ci-42/overrides/ovr_new"), words)
            assert_unavailable(client.delete("/sessions/ci-42"), words)
            assert state(client.get("/sessions/ci-42")) == BEFORE

            behind.execute_command(*cure)
            assert client.get("/sessions/new").status_code == 404
            assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER

    def test_calls_while_redis_loads_are_503(self, own_redis: RedisServer, client: httpx.Client) -> None:
        # Given a Redis that loads for ten seconds, a millisecond for each key, unless the test speeds it up
        with own_redis.client() as behind:
            behind.config_set("rdbcompression", "no")
            behind.mset({f"filler:{number}": "x" * 1024 for number in range(10_000)})
            behind.save()
        own_redis.stop()
        own_redis.options |= {"key_load_delay": "1000", "loading_process_events_interval_bytes": "1024"}
        own_redis.start(await_ready=False)

        # Then each error says that Redis is loading
        def loads() -> bool:
            response = client.put("/sessions/ci-42", json=AFTER)
            assert_unavailable(response)
            return "loading" in response.json()["error"]

        until(loads)
        assert_unavailable(client.get("/sessions/ci-42"), "loading")
        assert_unavailable(outside(client, "/readyz"), "loading")

        # And after loading, nothing was changed
        with own_redis.client() as behind:
            behind.execute_command("CONFIG", "SET", "key-load-delay", "0")
        own_redis.await_ready()
        assert state(client.get("/sessions/ci-42")) == BEFORE
        assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER

    def test_refused_connections_are_503(self, own_redis: RedisServer, gateway: GatewayProcess) -> None:
        with contextlib.ExitStack() as stack:
            behind = stack.enter_context(own_redis.client())
            behind.config_set("maxclients", 1)
            behind.execute_command("CLIENT", "KILL", "SKIPME", "yes")
            with gateway.client() as client:
                assert_unavailable(client.put("/sessions/ci-42", json=AFTER))

                behind.config_set("maxclients", 100)
                assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER


class TestHanging:
    def test_every_call_is_503_within_the_deadline_and_works_again(
        self, own_redis: RedisServer, client: httpx.Client
    ) -> None:
        own_redis.pause()
        with concurrent.futures.ThreadPoolExecutor(len(CALLS)) as threads:
            responses = list(threads.map(lambda call: call(client), CALLS))
        own_redis.resume()

        for response in responses:
            assert_unavailable(response)
        until(lambda: outside(client, "/readyz").status_code == 200)
        assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER
        assert state(client.get("/sessions/ci-42")) == AFTER

    def test_write_applies_whole_or_not_at_all(self, own_redis: RedisServer, client: httpx.Client) -> None:
        own_redis.pause()
        response = client.put("/sessions/ci-42", json=AFTER)
        own_redis.resume()

        # Redis may apply a sent write when it wakes up, and the error says so
        assert_unavailable(response)
        until(lambda: outside(client, "/readyz").status_code == 200)
        now = state(client.get("/sessions/ci-42"))
        assert now in ((BEFORE, AFTER) if "whole or not at all" in response.text else (BEFORE,))
        assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER

    def test_more_calls_than_connections_are_all_answered(self, own_redis: RedisServer, client: httpx.Client) -> None:
        own_redis.pause()
        with concurrent.futures.ThreadPoolExecutor(100) as threads:
            responses = list(threads.map(client.get, ["/sessions/ci-42"] * 100))
        own_redis.resume()

        for response in responses:
            assert_unavailable(response)
        until(lambda: client.get("/sessions/ci-42").status_code == 200)


class TestKilled:
    def test_answered_writes_are_kept_and_none_is_half_applied(self, own_redis: RedisServer) -> None:
        own_redis.close()
        with (
            RedisServer(appendonly="yes", appendfsync="always") as server,
            GatewayProcess(server.url, "--deadline", DEADLINE_S, "--lease", LEASE_S) as gateway,
            gateway.client() as client,
        ):
            assert client.put("/sessions/ci-42", json=BEFORE).status_code == 200

            def write(number: int) -> int:
                body = AFTER if number % 2 else BEFORE
                return client.put("/sessions/ci-42", json=body).status_code

            with concurrent.futures.ThreadPoolExecutor(8) as threads:
                pending = [threads.submit(write, number) for number in range(200)]
                done, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
                assert done
                server.kill()
                assert {future.result() for future in pending} <= {200, 503}

            server.start()
            assert state(client.get("/sessions/ci-42")) in (BEFORE, AFTER)
            assert state(client.put("/sessions/ci-42", json=AFTER)) == AFTER


def test_the_faults_are_real(own_redis: RedisServer) -> None:
    """These tests rely on it: a paused Redis does not answer, and a resumed one does."""
    with own_redis.client(retry=None, socket_timeout=0.2) as behind:
        behind.ping()
        own_redis.pause()
        with pytest.raises(redis.RedisError):
            behind.ping()
        own_redis.resume()
        assert behind.ping()
