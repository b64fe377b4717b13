"""Closing a store ends the calls in flight."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest

from sessionstore import (
    AsyncSessionStore,
    Environment,
    OutcomeUnknownError,
    SessionStore,
    SessionStoreError,
    StoreClosedError,
)

from ..support.polling import eventually
from ..support.redis_server import RedisServer


def named(server: RedisServer, name: str) -> str:
    """A URL whose connections `RedisServer.clients` finds by this name."""
    return f"{server.url}?client_name={name}"


def call_until_it_is_closed(staging: Environment, number: int, begun: threading.Semaphore) -> SessionStoreError:
    try:
        while True:
            staging.get("ci-42") if number % 2 else staging.put("ci-42", label=f"{number}", wait=False)
            begun.release()
    except SessionStoreError as exc:
        return exc


async def test_fails_the_calls_of_threads(shared_redis: RedisServer, prefix: str) -> None:
    for _ in range(20):
        store = SessionStore.from_url(named(shared_redis, prefix), prefix=prefix, lease_s=0.1, max_connections=4)
        staging = store.environment("checkout", "staging")
        staging.put("ci-42")
        begun = threading.Semaphore(0)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(call_until_it_is_closed, staging, number, begun) for number in range(8)]
            for _ in range(16):
                assert begun.acquire(timeout=20)
            store.close()
            errors = [call.result(20) for call in calls]

        # Only a write that was sent may have been applied.
        for number, error in enumerate(errors):
            assert type(error) is StoreClosedError or (number % 2 == 0 and type(error) is OutcomeUnknownError), error
        await eventually(lambda: not shared_redis.clients(prefix))


async def test_fails_the_calls_of_tasks(shared_redis: RedisServer, prefix: str) -> None:
    for steps in range(20):
        store = AsyncSessionStore.from_url(named(shared_redis, prefix), prefix=prefix, lease_s=0.1)
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42")
        gets = [asyncio.create_task(staging.get("ci-42")) for _ in range(8)]
        puts = [asyncio.create_task(staging.put("ci-42", label=str(n), wait=False)) for n in range(8)]
        for _ in range(steps):
            await asyncio.sleep(0)
        await store.aclose()

        for result in await asyncio.gather(*gets, *puts, return_exceptions=True):
            if isinstance(result, BaseException):
                assert type(result) in (StoreClosedError, OutcomeUnknownError), repr(result)
        await eventually(lambda: not shared_redis.clients(prefix))


@pytest.mark.parametrize("how", ["twice at once", "cancelled, and again"])
async def test_closes_once_and_completely(shared_redis: RedisServer, prefix: str, how: str) -> None:
    # Given a look-up that the view has not reported yet
    store = AsyncSessionStore.from_url(named(shared_redis, prefix), prefix=prefix, lease_s=0.5)
    staging = store.environment("checkout", "staging")
    session = await staging.put("ci-42")
    view = await staging.view(touch_interval_s=60).open()
    await asyncio.sleep(0.01)
    assert view.get("ci-42") == session

    if how == "twice at once":
        await asyncio.gather(store.aclose(), store.aclose())
    else:
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await store.aclose()

    # Then the look-up was reported, and no lease is left
    await eventually(lambda: not shared_redis.clients(prefix))
    async with AsyncSessionStore.from_url(shared_redis.url, prefix=prefix) as other:
        staging = other.environment("checkout", "staging")
        assert await staging.views() == ()
        seen = await staging.get("ci-42")
        assert seen is not None
        assert seen.last_seen_at > session.last_seen_at


def test_a_store_belongs_to_the_event_loop_that_it_was_used_on(shared_redis: RedisServer, prefix: str) -> None:
    store = AsyncSessionStore.from_url(shared_redis.url, prefix=prefix)

    async def use_and_close_elsewhere() -> None:
        with pytest.raises(StoreClosedError, match="another event loop"):
            await store.ping()
        await store.aclose()

    with asyncio.Runner() as runner:
        runner.run(store.ping())
        asyncio.run(use_and_close_elsewhere())

        # Then its connections are closed where they belong
        runner.run(store.aclose())
