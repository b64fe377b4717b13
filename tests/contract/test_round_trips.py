"""A GET, a PUT and a touch each make one round trip, as a real Redis counts them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from sessionstore import AsyncEnvironment, PreconditionFailedError, SessionStoreError
from sessionstore.protocol.server_identity import ServerIdentity

from ..support.adapter import Backend
from ..support.polling import eventually
from ..support.redis_server import RedisServer

CALLS: dict[str, tuple[Callable[[AsyncEnvironment], Awaitable[Any]], list[str]]] = {
    "get": (lambda staging: staging.get("ci-42"), ["get"]),
    "get nothing": (lambda staging: staging.get("never"), ["get"]),
    "put": (lambda staging: staging.put("ci-42", label="new"), ["put"]),
    "create": (lambda staging: staging.put("new", if_none_match="*"), ["put"]),
    "repeat": (lambda staging: staging.put("ci-42", label="x"), ["put"]),
    "activate": (lambda staging: staging.activate("ci-42", "ovr_a"), ["activate"]),
    "deactivate": (lambda staging: staging.deactivate("ci-42", "ovr_a"), ["deactivate"]),
    "reset": (lambda staging: staging.reset("ci-42"), ["reset"]),
    "delete": (lambda staging: staging.delete("ci-42"), ["delete"]),
    "touch": (lambda staging: staging.touch({"ci-42": 5, "other": 6}), ["touch"]),
    "touch 201": (lambda staging: staging.touch({f"k{number}": 5 for number in range(201)}), ["touch", "touch"]),
    "list": (lambda staging: staging.list(), ["page", "read"]),
    "list a prefix": (lambda staging: staging.list(prefix="ci-"), ["page", "read"]),
    "delete a prefix": (lambda staging: staging.delete_prefix("ci-"), ["scan", "read", "delete"]),
    "reset a prefix": (lambda staging: staging.reset_prefix("ci-"), ["scan", "read", "reset"]),
}


@pytest.fixture(params=["sync", "asyncio"])
def real(request: pytest.FixtureRequest, own_redis: RedisServer, prefix: str) -> Iterator[Backend]:
    backend = Backend(request.param, own_redis, prefix)
    yield backend
    backend.close()


@pytest.mark.parametrize("name", CALLS)
async def test_get_put_and_touch_make_one_round_trip_each(real: Backend, name: str) -> None:
    observed: list[tuple[str, float, SessionStoreError | None]] = []
    call, expected = CALLS[name]
    async with real.store(lease_s=0.1, observe=lambda *seen: observed.append(seen)) as store:
        # Given a connected store, on a Redis that has the scripts
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42", label="x")
        await call(staging)
        await staging.put("ci-42", label="x")
        await staging.delete("new")
        real.raw.config_resetstat()
        observed.clear()

        await call(staging)

        # Then Redis has run the expected scripts, and the store has sent nothing else
        stats = real.raw.info("commandstats")
    assert [script for script, _, _ in observed] == expected
    assert all(seconds > 0 and error is None for _, seconds, error in observed)
    assert stats["cmdstat_evalsha"]["calls"] == len(expected)
    inside = {f"cmdstat_{command}" for command in _IN_SCRIPTS}
    outside = {name for name in stats if name not in inside} - {"cmdstat_evalsha", "cmdstat_config|resetstat"}
    assert outside == set()


#: Commands that scripts run.
_IN_SCRIPTS = (
    *("time", "hmget", "hset", "hget", "hexists", "hdel", "hincrby", "hlen", "del", "exists", "pexpireat", "spublish"),
    *(
        "sismember",
        "pubsub|shardnumsub",
        "zadd",
        "zcard",
        "zcount",
        "zrangebyscore",
        "zrem",
        "zrange",
        "zrevrange",
        "zscan",
    ),
)


async def test_a_forgotten_script_costs_one_more_round_trip(real: Backend) -> None:
    async with real.store(lease_s=0.1) as store:
        staging = store.environment("checkout", "staging")
        first = await staging.put("ci-42", label="x")
        real.raw.script_flush()
        real.raw.config_resetstat()

        assert (await staging.put("ci-42", label="y")).revision == first.revision + 1

        stats = real.raw.info("commandstats")
        assert (stats["cmdstat_evalsha"]["calls"], stats["cmdstat_eval"]["calls"]) == (1, 1)


async def test_observes_each_of_the_calls_that_run_together(real: Backend) -> None:
    observed: list[str] = []
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            real.store(observe=lambda script, _seconds, _error: observed.append(script))
        )
        for name in ("staging", "production"):
            await stack.enter_async_context(store.environment("checkout", name).view())
        # The views' last calls are sent together.
        await store.aclose()
    assert observed.count("leave") == 2


async def test_observes_errors(real: Backend) -> None:
    observed: list[tuple[str, float, SessionStoreError | None]] = []
    async with real.store(lease_s=0.1, observe=lambda *seen: observed.append(seen)) as store:
        real.raw.config_set("maxmemory", "1")
        with pytest.raises(SessionStoreError) as caught:
            await store.environment("checkout", "staging").put("ci-42")
    assert [(script, error) for script, _, error in observed] == [("put", caught.value)]


async def test_observes_a_refusal_of_a_script_as_a_successful_call(real: Backend) -> None:
    observed: list[tuple[str, float, SessionStoreError | None]] = []
    async with real.store(lease_s=0.1, observe=lambda *seen: observed.append(seen)) as store:
        with pytest.raises(PreconditionFailedError):
            await store.environment("checkout", "staging").put("ci-42", if_match="*")
    assert [(script, error) for script, _, error in observed] == [("put", None)]


async def test_does_not_observe_a_call_that_is_not_sent(real: Backend) -> None:
    observed: list[Any] = []
    async with real.store(observe=lambda *seen: observed.append(seen)) as store:
        with pytest.raises(ValueError, match="label"):
            await store.environment("checkout", "staging").put("ci-42", label="x" * 201)
    assert observed == []


async def test_a_connection_identifies_its_server_once(real: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(ServerIdentity, "observed", lambda _self, info, _now: asked.append(info))
    observed: list[str] = []
    async with real.store(
        max_connections=1, lease_s=0.1, observe=lambda script, _seconds, _error: observed.append(script)
    ) as store:
        # Given a connection that has identified its server for a write
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42", label="x")
        async with staging.view(touch_interval_s=0.05) as view:
            # When writes and a view's calls go on
            view.get("ci-42")
            await eventually(lambda: "touch" in observed)
            await staging.put("ci-42", label="y")

    # Then no connection identifies it again; with asyncio, a view's calls have a connection of their own
    assert len(asked) == (1 if real.driver == "sync" else 2)
