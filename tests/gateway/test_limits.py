"""The rate limit: counted over all gateways of one Redis, shown in headers, and harmless when counting fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

import gateway.limits
from gateway.app import create_app
from gateway.auth import Authenticator
from gateway.limits import Limit, RateLimiter, parse_limit_setting
from gateway.metrics import Metrics
from sessionstore import AsyncSessionStore
from sessionstore.options import DEFAULT_DEADLINE_S, StoreOptions

from ..support.gateway import AUTHORIZATION, KEY, LEASE_S, PLACE, assert_error
from ..support.redis_server import RedisServer
from .test_round_trips import Monitor

OTHER_KEY = "fmk_" + "o" * 43
SESSION = "/api/v1/sessions/ci-42"


@dataclass
class Clock:
    """The limiter's clock, which the test moves."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Limited:
    client: httpx.AsyncClient
    store: AsyncSessionStore
    limiter: RateLimiter
    calls: list[str]
    #: requests that passed uncounted
    uncounted: list[None]
    clock: Clock

    async def get(self, path: str = SESSION, key: str = KEY) -> httpx.Response:
        return await self.client.get(path, params=PLACE, headers={"Authorization": f"Bearer {key}"})

    async def until_counted(self) -> None:
        """Let the pause pass, and make a request that is counted."""
        async with asyncio.timeout(20):
            while self.limiter._try_at is not None:
                self.clock.now += gateway.limits.PAUSE_S
                await self.get()
                assert self.limiter._trying is not None
                await self.limiter._trying


@contextlib.asynccontextmanager
async def open_gateway(
    server: RedisServer,
    prefix: str,
    limit: Limit,
    *,
    key: str = KEY,
    counted_by: RedisServer | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
) -> AsyncIterator[Limited]:
    """A gateway. It counts requests on its own Redis, or on another one if named."""
    calls: list[str] = []
    uncounted: list[None] = []
    clock = Clock()

    def observe(script: str, seconds: float, error: object) -> None:
        calls.append(script)

    url = (counted_by or server).url
    options: StoreOptions = {"prefix": prefix, "lease_s": LEASE_S, "deadline_s": deadline_s, "observe": observe}
    async with (
        AsyncSessionStore.from_url(server.url, **options) as store,
        AsyncSessionStore.from_url(url, **options) as counters,
    ):
        limiter = RateLimiter(counters, limit, lambda: uncounted.append(None), clock=clock)
        app = create_app(store, Authenticator(key), limiter=limiter, metrics=Metrics())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
            yield Limited(client, store, limiter, calls, uncounted, clock)


@pytest.fixture
async def pair(shared_redis: RedisServer, prefix: str) -> AsyncIterator[tuple[Limited, Limited]]:
    """Two gateways on one Redis, with three requests a minute. A slow machine counts each request too."""
    limit = Limit(3, 60)
    async with (
        open_gateway(shared_redis, prefix, limit, deadline_s=20.0) as one,
        open_gateway(shared_redis, prefix, limit, deadline_s=20.0) as other,
    ):
        yield one, other


def left(response: httpx.Response) -> int:
    match = re.fullmatch(r'"key";r=(\d+);t=(\d+)', response.headers["ratelimit"])
    assert match is not None
    assert 0 < int(match[2]) <= 60
    return int(match[1])


class TestLimit:
    async def test_is_one_over_all_gateways(self, pair: tuple[Limited, Limited]) -> None:
        one, other = pair

        responses = [await limited.get() for limited in (one, other, one)]

        assert [response.status_code for response in responses] == [404, 404, 404]
        assert [left(response) for response in responses] == [2, 1, 0]
        assert {response.headers["ratelimit-policy"] for response in responses} == {'"key";q=3;w=60'}
        assert all("retry-after" not in response.headers for response in responses)
        for limited in pair:
            refused = await limited.get()
            assert_error(refused, 429, "rate_limited", "3 requests", "60 seconds", "try again")
            assert left(refused) == 0
            assert 1 <= int(refused.headers["retry-after"]) <= 60

    async def test_refused_request_changes_nothing(self, pair: tuple[Limited, Limited]) -> None:
        one, other = pair
        for _ in range(3):
            await one.get()

        for method, path in (("PUT", SESSION), ("POST", f"{SESSION}/overrides/ovr_a"), ("DELETE", SESSION)):
            body: dict[str, str] | None = {} if method == "PUT" else None
            response = await other.client.request(method, path, params=PLACE, headers=AUTHORIZATION, json=body)
            assert_error(response, 429, "rate_limited")
        assert await one.store.environment("checkout", "staging").get("ci-42") is None

    async def test_keys_have_separate_limits(
        self, pair: tuple[Limited, Limited], shared_redis: RedisServer, prefix: str
    ) -> None:
        for _ in range(4):
            await pair[0].get()

        async with open_gateway(shared_redis, prefix, Limit(3, 60), key=OTHER_KEY) as limited:
            assert left(await limited.get(key=OTHER_KEY)) == 2

    async def test_counts_only_requests_with_a_valid_key(self, pair: tuple[Limited, Limited]) -> None:
        one, _ = pair
        for path in ("/healthz", "/readyz", "/metrics", "/api/v1/openapi.json", "/nope"):
            response = await one.get(path)
            assert "ratelimit" not in response.headers
        wrong = await one.get(key=OTHER_KEY)
        assert wrong.status_code == 401
        assert "ratelimit" not in wrong.headers

        assert left(await one.get()) == 2

    async def test_errors_count_and_show_the_limit(self, pair: tuple[Limited, Limited]) -> None:
        one, _ = pair

        response = await one.client.get(SESSION, params={"nonsense": "1"}, headers=AUTHORIZATION)

        assert_error(response, 422, "invalid_query")
        assert left(response) == 2

    async def test_concurrent_requests_are_all_counted(self, pair: tuple[Limited, Limited]) -> None:
        responses = await asyncio.gather(*(limited.get() for limited in pair for _ in range(20)))

        assert sorted(response.status_code for response in responses) == [404] * 3 + [429] * 37

    async def test_window_ends_on_every_gateway(
        self, pair: tuple[Limited, Limited], shared_redis: RedisServer, prefix: str
    ) -> None:
        one, other = pair
        for limited in (one, other, one, other):
            await limited.get()
        # When the window ends: its key in Redis is gone
        with shared_redis.client() as behind:
            (counter,) = behind.scan_iter(f"{prefix}:limits:*")
            assert 0 < behind.ttl(counter) <= 60
            behind.delete(counter)

        assert left(await other.get()) == 2
        assert left(await one.get()) == 1

    async def test_window_ends_after_retry_after(self, shared_redis: RedisServer, prefix: str) -> None:
        async with open_gateway(shared_redis, prefix, Limit(1, 1)) as limited:
            while (response := await limited.get()).status_code != 429:
                pass
            assert response.headers["retry-after"] == "1"
            async with asyncio.timeout(20):
                while (await limited.get()).status_code == 429:
                    pass

    async def test_costs_one_round_trip(self, own_redis: RedisServer, prefix: str) -> None:
        limit = Limit(100, 60)
        async with (
            open_gateway(own_redis, prefix, limit) as one,
            open_gateway(own_redis, prefix, limit) as other,
        ):
            # Given scripts that Redis has
            for limited in (one, other, one):
                await limited.get()
            one.calls.clear()
            with Monitor(own_redis) as monitor:
                for _ in range(3):
                    await one.get()

                assert monitor.commands() == ["EVALSHA", "EVALSHA"] * 3
            assert one.calls == ["key_count", "get"] * 3


class TestFailure:
    async def test_failure_of_counting_lets_requests_through_and_is_logged_once(
        self, shared_redis: RedisServer, own_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gateway")
        async with open_gateway(shared_redis, prefix, Limit(2, 60), counted_by=own_redis) as limited:
            assert left(await limited.get()) == 1
            own_redis.stop()

            responses = [await limited.get() for _ in range(5)]

            assert {response.status_code for response in responses} == {404}
            assert all("ratelimit" not in response.headers for response in responses)
            assert len(limited.uncounted) == 5
            own_redis.start()
            await limited.until_counted()
            # The request that tried is counted too.
            assert len(limited.uncounted) == 6
            assert left(await limited.get()) == 0

        ours = [record for record in caplog.records if record.name == "gateway"]
        assert [record.levelname for record in ours] == ["WARNING", "WARNING"]

    async def test_hanging_counters_delay_requests_only_briefly(
        self, shared_redis: RedisServer, own_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gateway.limits, "_DEADLINE_S", 1.0)
        async with open_gateway(shared_redis, prefix, Limit(2, 60), counted_by=own_redis) as limited:
            await limited.get()
            own_redis.pause()
            try:
                response = await limited.get()
            finally:
                own_redis.resume()

            assert response.status_code == 404
            assert len(limited.uncounted) == 1
            await limited.until_counted()

    async def test_after_a_failure_no_request_waits_for_a_count(
        self, shared_redis: RedisServer, own_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with open_gateway(shared_redis, prefix, Limit(9, 60), counted_by=own_redis) as limited:
            # Given a count that failed, and counters that hang
            own_redis.stop()
            assert "ratelimit" not in (await limited.get()).headers
            own_redis.start()
            own_redis.pause()
            try:
                # When a request would wait an hour for its count, then requests pass at once
                monkeypatch.setattr(gateway.limits, "_DEADLINE_S", 3600.0)
                limited.clock.now += gateway.limits.PAUSE_S - 0.001
                async with asyncio.timeout(20):
                    assert {response.status_code for response in [await limited.get() for _ in range(3)]} == {404}
                assert len(limited.uncounted) == 4
                assert limited.limiter._trying is None

                # And after the pause, one of them is counted, and does not wait for that either
                limited.clock.now += 0.001
                async with asyncio.timeout(20):
                    assert {response.status_code for response in [await limited.get() for _ in range(3)]} == {404}
                assert len(limited.uncounted) == 7
                trying = limited.limiter._trying
                assert trying is not None
                assert not trying.done()
            finally:
                own_redis.resume()

            # And when that works, all are counted
            await trying
            assert left(await limited.get()) == 7

    async def test_a_failed_try_begins_another_pause(
        self, shared_redis: RedisServer, own_redis: RedisServer, prefix: str
    ) -> None:
        async with open_gateway(shared_redis, prefix, Limit(9, 60), counted_by=own_redis) as limited:
            own_redis.stop()
            await limited.get()
            limited.clock.now += gateway.limits.PAUSE_S
            await limited.get()
            trying = limited.limiter._trying
            assert trying is not None
            await trying
            own_redis.start()
            limited.clock.now += gateway.limits.PAUSE_S - 0.001
            await limited.get()
            assert limited.limiter._trying is trying
            await limited.until_counted()


async def test_off_counts_nothing(shared_redis: RedisServer, prefix: str) -> None:
    async with AsyncSessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        transport = httpx.ASGITransport(app=create_app(store, Authenticator(KEY), limiter=None))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=AUTHORIZATION) as client:
            response = await client.get(SESSION, params=PLACE)
    assert response.status_code == 404
    assert not {"ratelimit", "ratelimit-policy"} & set(response.headers)
    with shared_redis.client() as behind:
        assert list(behind.scan_iter(f"{prefix}:limits:*")) == []


@pytest.mark.parametrize(
    ("text", "limit"), [("120/60", Limit(120, 60)), ("1/1", Limit(1, 1)), ("off", None), ("OFF", None)]
)
def test_valid_settings(text: str, limit: Limit | None) -> None:
    assert parse_limit_setting(text) == limit


@pytest.mark.parametrize("text", ["", "0/60", "120", "120/0", "120/60s", "-1/60", "on", "1.5/60", "120 / 60", "１/60"])
def test_invalid_setting(text: str) -> None:
    with pytest.raises(ValueError, match="6000/60, or off"):
        parse_limit_setting(text)
