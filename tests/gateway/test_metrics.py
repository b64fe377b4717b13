"""Each metric counts what its name says, labels are bounded, and a scrape never waits long."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.__main__ import main
from gateway.app import create_app, create_metrics_app
from gateway.auth import Authenticator
from gateway.limits import Limit, RateLimiter
from gateway.metrics import Metrics
from sessionstore import AsyncSessionStore, NotEffectiveError, StoreUnavailableError
from sessionstore.api_keys.model import KeySnapshot

from ..conftest import require_redis_server
from ..support.gateway import AUTHORIZATION, KEY, LEASE_S, PLACE
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer, free_port

SESSIONS = "/api/v1/sessions"
UP = "sessionstore_redis_primary_up"
TEMPLATE = "/api/v1/sessions/{sessionKey}"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def new_scrapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render each scrape anew, unless a test says otherwise."""
    monkeypatch.setattr("gateway.metrics._SCRAPE_AGAIN_S", 0.0)


@dataclass
class Measured:
    client: httpx.AsyncClient
    store: AsyncSessionStore
    metrics: Metrics

    async def scrape(self) -> Samples:
        response = await self.client.get("/metrics", headers={"Authorization": ""})
        assert response.status_code == 200, response.text
        return parse(response.text)

    async def value(self, name: str, **labels: str) -> float:
        return (await self.scrape()).get((name, tuple(sorted(labels.items()))), 0.0)


def parse(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextlib.asynccontextmanager
async def open_gateway(server: RedisServer, prefix: str, limit: Limit | None = None) -> AsyncIterator[Measured]:
    metrics = Metrics()
    async with AsyncSessionStore.from_url(
        server.url, prefix=prefix, lease_s=LEASE_S, deadline_s=0.5, observe=metrics.called_redis
    ) as store:
        limiter = None if limit is None else RateLimiter(store, limit, metrics.let_through)
        authenticator = Authenticator(KEY, on_refusal=metrics.refused)
        app = create_app(store, authenticator, limiter=limiter, metrics=metrics)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://gateway", headers=AUTHORIZATION, params=PLACE
        ) as client:
            yield Measured(client, store, metrics)


@pytest.fixture
async def measured(shared_redis: RedisServer, prefix: str) -> AsyncIterator[Measured]:
    async with open_gateway(shared_redis, prefix) as measured:
        yield measured


def test_corrupt_records_of_keys_are_shown() -> None:
    metrics = Metrics()
    for corrupt in (("1" * 12,), ("1" * 12, "2" * 12), ()):
        metrics.loaded_keys(KeySnapshot(1, {}, corrupt))
        found = parse(generate_latest(metrics._registry).decode())
        assert found[("sessionstore_corrupt_api_keys", ())] == len(corrupt)


def test_age_of_the_keys_is_of_the_scrape() -> None:
    metrics, ages = Metrics(), iter((0.25, float("inf")))
    metrics.show_key_age(lambda: next(ages))
    for age in (0.25, float("inf")):
        found = parse(generate_latest(metrics._registry).decode())
        assert found[("sessionstore_api_keys_age_seconds", ())] == age


class TestPrimaries:
    async def test_are_up_or_down_and_replaced_ones_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.metrics._COUNT_AGAIN_S", 0.0)
        metrics, store, down = Metrics(), Primaries(), StoreUnavailableError("down")
        metrics.check_primaries_of(store)  # type: ignore[arg-type]

        cases: tuple[tuple[Any, dict[str, int]], ...] = (
            ({"a:1": None, "b:1": None}, {"a:1": 1, "b:1": 1}),
            ({"a:1": None, "b:1": down}, {"a:1": 1, "b:1": 0}),
            # A replica of b has been promoted
            ({"a:1": None, "b:2": None}, {"a:1": 1, "b:2": 1}),
            # No node answers
            (down, {"a:1": 0, "b:2": 0}),
            (down, {"a:1": 0, "b:2": 0}),
            ({"a:1": None, "b:2": None}, {"a:1": 1, "b:2": 1}),
        )
        for answer, shown in cases:
            store.answer = answer
            samples = parse(await scrape_of(metrics))
            found = {dict(labels)["address"]: up for (name, labels), up in samples.items() if name == UP}
            assert found == shown

    def test_of_a_redis_with_a_password_are_shown_without_it(self) -> None:
        require_redis_server()
        with RedisServer(requirepass="s3cret-pa55") as server:
            url = server.url.replace("://", "://:s3cret-pa55@")
            with GatewayProcess(url) as gateway, gateway.client() as client:
                text = client.get(f"http://{gateway.host}:{gateway.port}/metrics").text
        assert (UP, (("address", f"127.0.0.1:{server.port}"),)) in parse(text)
        assert "s3cret" not in text


class Primaries:
    """A store that says so about its primaries."""

    def __init__(self) -> None:
        self.answer: dict[str, StoreUnavailableError | None] | StoreUnavailableError = {}

    async def check_primaries(self, within_s: float) -> dict[str, StoreUnavailableError | None]:
        if isinstance(self.answer, StoreUnavailableError):
            raise self.answer
        return self.answer


async def scrape_of(metrics: Metrics) -> str:
    transport = httpx.ASGITransport(app=create_metrics_app(metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return (await client.get("/metrics")).text


class TestRequests:
    async def test_are_counted_by_route_method_and_status(self, measured: Measured) -> None:
        for _ in range(3):
            await measured.client.put(f"{SESSIONS}/ci-42", json={})
        await measured.client.get(f"{SESSIONS}/nobody")
        await measured.client.head(f"{SESSIONS}/nobody")

        samples = await measured.scrape()

        def requests(method: str, status: str) -> float:
            labels = (("method", method), ("route", TEMPLATE), ("status", status))
            return samples["sessionstore_http_requests_total", labels]

        assert requests("PUT", "200") == 3
        assert requests("GET", "404") == 1
        assert requests("HEAD", "404") == 1
        labels = (("method", "PUT"), ("route", TEMPLATE))
        assert samples["sessionstore_http_request_seconds_count", labels] == 3
        assert 0 < samples["sessionstore_http_request_seconds_sum", labels] < 60
        assert samples["sessionstore_http_request_seconds_bucket", tuple(sorted((*labels, ("le", "+Inf"))))] == 3
        assert samples["sessionstore_http_errors_total", (("code", "not_found"),)] == 2

    async def test_of_made_up_routes_and_methods_share_a_label(self, measured: Measured) -> None:
        for number in range(3):
            await measured.client.get(f"/made-up-{number}")
            await measured.client.request(f"BREW{number}", f"{SESSIONS}/ci-42")

        samples = await measured.scrape()

        labels = (("method", "GET"), ("route", "unknown"), ("status", "404"))
        assert samples["sessionstore_http_requests_total", labels] == 3
        labels = (("method", "other"), ("route", TEMPLATE), ("status", "405"))
        assert samples["sessionstore_http_requests_total", labels] == 3

    async def test_that_fail_inside_are_counted(self, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(project: str, environment: str) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(measured.store, "environment", fail)
        await measured.client.get(f"{SESSIONS}/ci-42")

        assert await measured.value("sessionstore_http_errors_total", code="internal_error") == 1

    async def test_refused_for_their_key_are_counted_by_reason(self, measured: Measured) -> None:
        await measured.client.get(SESSIONS, headers={"Authorization": "Bearer fmk_x"})
        await measured.client.get(SESSIONS, headers={"Authorization": f"Bearer fmk_{'w' * 43}"})
        del measured.client.headers["authorization"]
        await measured.client.get(SESSIONS)

        name = "sessionstore_unauthenticated_total"
        samples = await measured.scrape()
        assert {dict(labels)["reason"]: value for (found, labels), value in samples.items() if found == name} == {
            "missing": 1,
            "malformed": 1,
            "unknown": 1,
            "revoked": 0,
            "expired": 0,
            "unavailable": 0,
        }

    async def test_over_the_limit_are_counted(self, shared_redis: RedisServer, prefix: str) -> None:
        async with open_gateway(shared_redis, prefix, Limit(1, 60)) as measured:
            for _ in range(3):
                await measured.client.get(SESSIONS)

            assert await measured.value("sessionstore_rate_limited_total") == 2

    async def test_that_the_limiter_let_through_are_counted(self, own_redis: RedisServer, prefix: str) -> None:
        async with open_gateway(own_redis, prefix, Limit(1, 60)) as measured:
            own_redis.stop()
            await measured.client.get(SESSIONS)

            assert await measured.value("sessionstore_limiter_failures_total") == 1


class TestRedis:
    async def test_round_trips_and_errors_are_counted_by_script(self, own_redis: RedisServer, prefix: str) -> None:
        async with open_gateway(own_redis, prefix) as measured:
            await measured.client.put(f"{SESSIONS}/ci-42", json={})
            await measured.client.get(f"{SESSIONS}/ci-42")
            own_redis.stop()
            await measured.client.get(f"{SESSIONS}/ci-42")

            assert await measured.value("sessionstore_redis_call_seconds_count", script="put") == 1
            assert await measured.value("sessionstore_redis_call_seconds_count", script="get") == 2
            assert await measured.value("sessionstore_redis_errors_total", script="get", error="StoreUnavailable") == 1


class TestEffect:
    async def test_views_and_the_wait_are_counted(self, measured: Measured, shared_redis: RedisServer) -> None:
        prefix = measured.store.config.prefix
        async with (
            AsyncSessionStore.from_url(shared_redis.url, prefix=prefix) as proxy,
            proxy.environment("checkout", "staging").view(),
        ):
            await measured.client.put(f"{SESSIONS}/ci-42", json={"label": "1"})
            await measured.client.put(f"{SESSIONS}/ci-42", json={"label": "2"})
            await measured.client.put(f"{SESSIONS}/ci-42", json={"label": "3"}, headers={"Prefer": "respond-async"})

        assert await measured.value("sessionstore_views_confirmed_total") == 2
        assert await measured.value("sessionstore_views_expired_total") == 0
        assert await measured.value("sessionstore_write_effective_seconds_count") == 2

    async def test_writes_that_may_not_be_effective_are_counted(
        self, measured: Measured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def run(operation: object) -> None:
            raise NotEffectiveError("The write was committed.")

        monkeypatch.setattr(measured.store._runner, "run", run)
        await measured.client.put(f"{SESSIONS}/ci-42", json={})
        monkeypatch.undo()

        assert await measured.value("sessionstore_writes_not_effective_total") == 1


class TestLiveSessions:
    def found(self, samples: Samples) -> dict[tuple[str, str], float]:
        return {
            (dict(labels)["project"], dict(labels)["environment"]): value
            for (name, labels), value in samples.items()
            if name == "sessionstore_live_sessions"
        }

    async def register(self, measured: Measured, project: str, *environments: str) -> None:
        await measured.store.project(project).apply_catalog(
            {"project": project, "environments": {name: {} for name in environments}}
        )

    async def test_are_counted_by_registered_environment_only(self, measured: Measured) -> None:
        # Given one project with registered environments, and a made-up one
        await self.register(measured, "checkout", "staging", "qa")
        for path in ("a", "b"):
            await measured.client.put(f"{SESSIONS}/{path}", json={})
        await measured.client.put(f"{SESSIONS}/a", json={}, params={**PLACE, "project": "made-up"})
        await measured.client.get(f"{SESSIONS}/a", params={**PLACE, "environment": "made-up"})

        response = await measured.client.get("/metrics")

        assert self.found(parse(response.text)) == {("checkout", "staging"): 2, ("checkout", "qa"): 0}
        assert "made-up" not in response.text

    async def test_live_views_are_counted_too(self, measured: Measured) -> None:
        await self.register(measured, "checkout", "staging", "qa")
        await measured.client.put(f"{SESSIONS}/a", json={})
        async with measured.store.environment("checkout", "staging").view():
            samples = await measured.scrape()

        found = {
            dict(labels)["environment"]: value
            for (name, labels), value in samples.items()
            if name == "sessionstore_live_views"
        }
        assert found == {"staging": 1, "qa": 0}

    async def test_are_not_counted_for_projects_without_a_request_to_this_gateway(self, measured: Measured) -> None:
        await self.register(measured, "search", "staging")

        assert self.found(await measured.scrape()) == {}

    async def test_are_left_out_while_redis_is_down_and_the_scrape_is_answered(
        self, own_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.metrics._COUNT_AGAIN_S", 0.0)
        async with open_gateway(own_redis, prefix) as measured:
            await self.register(measured, "checkout", "staging")
            await measured.client.put(f"{SESSIONS}/a", json={})
            assert self.found(await measured.scrape()) == {("checkout", "staging"): 1}

            own_redis.stop()
            assert self.found(await measured.scrape()) == {}

            own_redis.start()
            await self.register(measured, "checkout", "staging")
            assert self.found(await measured.scrape()) == {("checkout", "staging"): 0}

    async def test_do_not_delay_a_scrape_while_redis_hangs(
        self, own_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a Redis that hangs, and a store's deadline that is longer than a scrape may take
        monkeypatch.setattr("gateway.metrics._COUNT_DEADLINE_S", 0.05)
        async with open_gateway(own_redis, prefix) as measured:
            await measured.client.put(f"{SESSIONS}/a", json={})
            own_redis.pause()
            try:
                assert self.found(await measured.scrape()) == {}
            finally:
                own_redis.resume()

    async def test_of_a_project_whose_redis_hangs_are_missing_alone(
        self, measured: Measured, own_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.metrics._COUNT_AGAIN_S", 0.0)
        projects = ("early", "checkout", "late")
        async with open_gateway(own_redis, prefix) as other:
            # Given projects on two Redis
            stores = {"early": other.store, "checkout": measured.store, "late": other.store}
            for project in projects:
                await (
                    stores[project]
                    .project(project)
                    .apply_catalog({"project": project, "environments": {"staging": {}}})
                )
                measured.metrics.served(stores[project], project)
            assert self.found(await measured.scrape()) == {(project, "staging"): 0 for project in projects}

            # When one hangs, then those of the other one are counted
            own_redis.pause()
            try:
                assert self.found(await measured.scrape()) == {("checkout", "staging"): 0}
            finally:
                own_redis.resume()

    async def test_are_counted_once_for_many_scrapes(self, measured: Measured) -> None:
        await self.register(measured, "checkout", "staging")
        await measured.client.put(f"{SESSIONS}/a", json={})
        for _ in range(5):
            await measured.scrape()

        assert await measured.value("sessionstore_redis_call_seconds_count", script="count") == 1

    async def test_of_no_more_projects_than_the_bound(
        self, measured: Measured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.metrics._MAX_PROJECTS", 2)
        for project in ("one", "two", "three"):
            await self.register(measured, project, "staging")
            await measured.client.get(f"{SESSIONS}/a", params={**PLACE, "project": project})

        assert len(self.found(await measured.scrape())) == 2

    async def test_of_a_project_stay_when_others_are_made_up(
        self, measured: Measured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.metrics._MAX_PROJECTS", 2)
        monkeypatch.setattr("gateway.metrics._COUNT_AGAIN_S", 0.0)
        await self.register(measured, "checkout", "staging")
        await measured.client.get(f"{SESSIONS}/a")
        for round_ in range(3):
            for number in range(5):
                project = f"made-up-{round_}-{number}"
                await measured.client.get(f"{SESSIONS}/a", params={**PLACE, "project": project})

            assert self.found(await measured.scrape()) == {("checkout", "staging"): 0}

        # And another project that is real is found, after those that were named before it
        await self.register(measured, "search", "staging")
        await measured.client.get(f"{SESSIONS}/a", params={**PLACE, "project": "search"})
        assert ("search", "staging") in self.found(await measured.scrape())

    async def test_of_the_project_that_was_served_last_stay(
        self, measured: Measured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.metrics._MAX_PROJECTS", 2)
        monkeypatch.setattr("gateway.metrics._COUNT_AGAIN_S", 0.0)
        for project in ("one", "two", "three", "one", "four"):
            await self.register(measured, project, "staging")
            await measured.client.get(f"{SESSIONS}/a", params={**PLACE, "project": project})
            found = self.found(await measured.scrape())

        assert {project for project, _ in found} == {"one", "four"}


class TestScrape:
    async def test_is_reused_for_a_second(self, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr("gateway.metrics._SCRAPE_AGAIN_S", 1.0)
        monkeypatch.setattr("gateway.metrics.time.monotonic", lambda: now)
        first = await measured.client.get("/metrics")
        await measured.client.get(f"{SESSIONS}/a")

        now += 0.999
        assert (await measured.client.get("/metrics")).content == first.content
        now += 0.001
        assert (await measured.client.get("/metrics")).content != first.content


class TestText:
    async def test_never_holds_text_of_a_client(self, measured: Measured) -> None:
        marker = "s3cretmarker"
        client = measured.client
        calls: list[tuple[str, str, dict[str, Any]]] = [
            ("PUT", f"{SESSIONS}/{marker}", {"json": {"label": marker}}),
            ("PUT", f"{SESSIONS}/a", {"json": {"overrides": [f"ovr_{marker}"], "scenario": f"scn_{marker}"}}),
            ("GET", f"{SESSIONS}/{marker}", {"headers": {"X-Request-Id": marker}}),
            ("POST", f"{SESSIONS}/a/overrides/ovr_{marker}", {}),
            ("GET", f"/{marker}", {}),
            ("GET", SESSIONS, {"params": {marker: marker}}),
            ("GET", SESSIONS, {"params": {"project": marker, "environment": marker}}),
            (marker.upper(), SESSIONS, {}),
            ("GET", SESSIONS, {"headers": {"Authorization": f"Bearer {marker}"}}),
        ]
        for method, path, options in calls:
            await client.request(method, path, **options)

        text = (await client.get("/metrics")).text

        assert marker not in text.lower()
        assert KEY not in text

    async def test_is_in_prometheus_format_and_needs_no_key(self, measured: Measured) -> None:
        del measured.client.headers["authorization"]

        response = await measured.client.get("/metrics")

        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "_created" not in response.text
        families = {family.name for family in text_string_to_metric_families(response.text)}
        assert {"sessionstore_build_info", "process_cpu_seconds", "sessionstore_http_requests"} <= families
        assert (await measured.client.head("/metrics")).status_code == 200

    async def test_gateways_have_separate_metrics(
        self, measured: Measured, shared_redis: RedisServer, prefix: str
    ) -> None:
        await measured.client.put(f"{SESSIONS}/a", json={})
        async with open_gateway(shared_redis, prefix) as other:
            assert await other.value("sessionstore_redis_call_seconds_count", script="put") == 0

    def test_every_metric_is_documented(self) -> None:
        from pathlib import Path

        documented = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
        for metric in Metrics()._registry.collect():
            if metric.name.startswith("sessionstore_"):
                suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
                name = metric.name.removesuffix("_info") + suffix
                assert f"`{name}`" in documented, name


class TestPlace:
    @pytest.fixture
    def url(self, shared_redis: RedisServer) -> str:
        return shared_redis.url

    def test_off(self, url: str) -> None:
        with GatewayProcess(url, "--metrics", "off") as gateway, gateway.client() as client:
            assert client.get(f"http://{gateway.host}:{gateway.port}/metrics").status_code == 404
            assert client.put("/sessions/a", json={}).status_code == 200

    def test_on_a_port_of_their_own(self, url: str) -> None:
        port = free_port()
        with GatewayProcess(url, SESSIONSTORE_METRICS=str(port)) as gateway, gateway.client() as client:
            assert client.put("/sessions/a", json={}).status_code == 200
            assert client.get(f"http://{gateway.host}:{gateway.port}/metrics").status_code == 404
            response = client.get(f"http://{gateway.host}:{port}/metrics")
            assert 'sessionstore_http_requests_total{method="PUT"' in response.text
            assert client.get(f"http://{gateway.host}:{port}/api/v1/sessions").status_code == 404

            gateway.signal(signal.SIGTERM)

            assert gateway.wait() == 0
            assert "Traceback" not in gateway.log

    @pytest.mark.parametrize("text", ["maybe", "70000", "-1"])
    def test_invalid_one_is_refused(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--metrics", text]) == 2
        assert "--metrics: must be on, off, or a port" in capsys.readouterr().err
