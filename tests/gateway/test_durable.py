"""``?replicas=N`` over HTTP, on a real primary with a replica, and the gateway's own number of replicas."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import pytest

from gateway.app import create_app
from gateway.auth import Authenticator
from gateway.metrics import Metrics
from sessionstore import AsyncSessionStore

from ..conftest import require_redis_server
from ..support.gateway import API, AUTHORIZATION, KEY, PLACE, assert_error
from ..support.gateway_process import GatewayProcess
from ..support.replication import Replication, short_waits

CALLS = [
    ("PUT", "/sessions/ci-42", {"label": "x"}),
    ("POST", "/sessions/ci-42/overrides/ovr_a", None),
    ("DELETE", "/sessions/ci-42/overrides/ovr_a", None),
    ("DELETE", "/sessions/ci-42", None),
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Replication]:
    require_redis_server()
    with Replication() as pair:
        yield pair


@pytest.fixture
def replication(pair: Replication) -> Iterator[Replication]:
    yield pair
    for link in pair.links.values():
        link.set()
    pair.await_in_step()


@pytest.fixture
def replicas() -> int:
    """The store's own number."""
    return 0


@pytest.fixture
async def api(replication: Replication, prefix: str, replicas: int) -> AsyncIterator[API]:
    metrics = Metrics()
    store = AsyncSessionStore.from_url(
        replication.url, prefix=prefix, lease_s=0.1, deadline_s=10.0, replicas=replicas, observe=metrics.called_redis
    )
    app = create_app(store, Authenticator(KEY), metrics=metrics)
    transport = httpx.ASGITransport(app=app)
    async with (
        store,
        httpx.AsyncClient(transport=transport, base_url="http://gateway/api/v1", headers=AUTHORIZATION) as client,
    ):
        yield API(app, client, store)


@contextmanager
def behind(replication: Replication) -> Iterator[None]:
    """Let the replica fall behind."""
    for link in replication.links.values():
        link.set(to_client="hold")
    with short_waits():
        yield


async def metrics_of(api: API) -> dict[str, float]:
    text = (await api.client.get("http://gateway/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^([^# ].*) (\S+)$", text, re.MULTILINE)}


class TestEnough:
    async def test_are_told_in_the_answer(self, api: API) -> None:
        for method, path, body in CALLS:
            response = await api.call(method, path, json=body, params={**PLACE, "replicas": "1"})

            assert response.status_code == 200, response.text
            assert response.headers["session-replicas"] == "1"
            pattern = r"commit;dur=[\d.]+, durable;dur=[\d.]+, effective;dur=[\d.]+"
            assert re.fullmatch(pattern, response.headers["server-timing"])
        metrics = await metrics_of(api)
        assert metrics["sessionstore_write_durable_seconds_count"] == len(CALLS)
        assert metrics["sessionstore_writes_not_durable_total"] == 0
        assert metrics['sessionstore_redis_call_seconds_count{script="fence"}'] == len(CALLS)

    async def test_are_waited_for_without_views(self, api: API) -> None:
        """`Prefer: respond-async` is about views only."""
        prefer = {"Prefer": "respond-async"}
        response = await api.put("ci-42", params={**PLACE, "replicas": "1"}, headers=prefer)

        assert response.headers["preference-applied"] == "respond-async"
        assert response.headers["session-replicas"] == "1"
        assert re.fullmatch(r"commit;dur=[\d.]+, durable;dur=[\d.]+", response.headers["server-timing"])

    async def test_are_not_asked_for_by_default(self, api: API) -> None:
        response = await api.put("ci-42")

        assert "session-replicas" not in response.headers
        assert "durable" not in response.headers["server-timing"]

    async def test_of_a_prefix(self, api: API) -> None:
        await api.put("ci-42")
        params = {**PLACE, "prefix": "ci-", "mode": "delete", "replicas": "1"}
        response = await api.call("DELETE", "/sessions", params=params)

        assert response.json()["count"] == 1
        assert response.headers["session-replicas"] == "1"


class TestTooFew:
    async def test_is_503_with_the_etag_and_says_that_the_state_is_set(
        self, api: API, replication: Replication
    ) -> None:
        with behind(replication):
            for method, path, body in CALLS:
                response = await api.call(method, path, json=body, params={**PLACE, "replicas": "1"})

                assert_error(response, 503, "not_durable", "The state is set", "replicas=1", "and 0 had it")
                assert response.headers["session-replicas"] == "0"
                assert "retry-after" not in response.headers
                assert response.headers["etag"] == (await api.get("ci-42")).headers["etag"]
            response = await api.delete("ci-42", "delete", params={"replicas": "1"})
            assert_error(response, 503, "not_durable")
            assert "etag" not in response.headers
        metrics = await metrics_of(api)
        assert metrics["sessionstore_writes_not_durable_total"] == len(CALLS) + 1
        assert metrics['sessionstore_http_errors_total{code="not_durable"}'] == len(CALLS) + 1
        assert metrics["sessionstore_write_durable_seconds_count"] == 0

    @pytest.mark.parametrize("value", ["-1", "11", "1.0", "one", "", "٢", " 1"])
    async def test_of_an_invalid_number_is_422(self, api: API, value: str) -> None:
        for method, path, body in CALLS:
            response = await api.call(method, path, json=body, params={**PLACE, "replicas": value})
            assert_error(response, 422, "invalid_query", "replicas must be a whole number from 0 to 10.")
        response = await api.get("ci-42", params={**PLACE, "replicas": "1"})
        assert_error(response, 422, "invalid_query", "Unknown query parameter 'replicas'")


class TestTheStoresOwnNumber:
    @pytest.fixture
    def replicas(self) -> int:
        return 1

    async def test_holds_for_each_call(self, api: API, replication: Replication) -> None:
        assert (await api.put("ci-42")).headers["session-replicas"] == "1"
        with behind(replication):
            assert_error(await api.put("ci-42"), 503, "not_durable")

    async def test_gives_way_to_the_calls(self, api: API, replication: Replication) -> None:
        with behind(replication):
            assert (await api.put("ci-42", params={**PLACE, "replicas": "0"})).status_code == 200


@pytest.mark.parametrize("way", ["option", "url"])
def test_a_gateway_takes_it(replication: Replication, prefix: str, way: str) -> None:
    url, options = (replication.url, ["--replicas", "1"]) if way == "option" else (f"{replication.url}?replicas=1", [])
    with GatewayProcess(url, "--prefix", prefix, *options) as gateway:
        address = f"{gateway.url}/api/v1/sessions/ci-42"
        response = httpx.put(address, json={}, params=PLACE, headers=AUTHORIZATION, timeout=20)
    assert response.headers["session-replicas"] == "1"
