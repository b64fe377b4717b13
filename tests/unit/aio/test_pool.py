"""The asyncio store's own connection pool, on a real Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio

from sessionstore import AsyncSessionStore, StoreClosedError, StoreUnavailableError

from ...support.redis_server import RedisServer


def idle(store: AsyncSessionStore) -> list[Any]:
    """The pool's idle connections."""
    connections: list[Any] = store._runner.connections.pool._available_connections
    return connections


def clients(server: RedisServer, name: str) -> int:
    """The number of Redis's clients with this name."""
    with server.client() as behind:
        return sum(client["name"] == name for client in behind.client_list())


async def test_call_waits_for_a_free_connection(shared_redis: RedisServer, prefix: str) -> None:
    url = f"{shared_redis.url}?client_name={prefix}"
    async with AsyncSessionStore.from_url(url, prefix=prefix, max_connections=2, deadline_s=20) as store:
        staging = store.environment("checkout", "staging")

        await asyncio.gather(*(staging.get(f"ci-{number}") for number in range(100)))

        assert clients(shared_redis, prefix) == 2


async def test_connection_that_redis_has_closed_connects_again(shared_redis: RedisServer, prefix: str) -> None:
    # Given idle connections that Redis closes
    url = f"{shared_redis.url}?client_name={prefix}"
    async with AsyncSessionStore.from_url(url, prefix=prefix, max_connections=4, deadline_s=20) as store:
        staging = store.environment("checkout", "staging")
        await asyncio.gather(*(staging.get("ci-42") for _ in range(16)))
        connections = list(idle(store))
        with shared_redis.client() as behind:
            for client in behind.client_list():
                if client["name"] == prefix:
                    behind.client_kill_filter(_id=client["id"])
        async with asyncio.timeout(20):
            while not all(connection._reader.at_eof() for connection in connections):  # noqa: ASYNC110
                await asyncio.sleep(0)

        # When calls are made, then none of them notices
        assert await asyncio.gather(*(staging.get("ci-42") for _ in range(16))) == [None] * 16


async def test_connection_with_an_unexpected_answer_connects_again(shared_redis: RedisServer, prefix: str) -> None:
    async with AsyncSessionStore.from_url(shared_redis.url, prefix=prefix, max_connections=1, deadline_s=20) as store:
        await store.ping()
        [connection] = idle(store)
        await connection.send_command("ECHO", "an answer that is still to come")
        async with asyncio.timeout(20):
            while not await connection.can_read():  # noqa: ASYNC110
                await asyncio.sleep(0)

        assert await store.environment("checkout", "staging").get("ci-42") is None


async def test_cancelled_calls_lose_no_connection(shared_redis: RedisServer, prefix: str) -> None:
    async with AsyncSessionStore.from_url(shared_redis.url, prefix=prefix, max_connections=2, deadline_s=20) as store:
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42", label="x")
        for steps in range(40):
            calls = [asyncio.create_task(staging.put("ci-42", label="x", wait=False)) for _ in range(4)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

        pool: Any = store._runner.connections.pool
        assert not pool._in_use_connections
        assert len(pool._available_connections) <= 2
        sessions = await asyncio.gather(*(staging.get("ci-42") for _ in range(10)))
        assert [session.label for session in sessions if session is not None] == ["x"] * 10


async def test_call_without_a_connection_fails_at_its_deadline(own_redis: RedisServer) -> None:
    async with AsyncSessionStore.from_url(own_redis.url, max_connections=1, deadline_s=0.2) as store:
        await store.ping()
        own_redis.pause()
        results = await asyncio.gather(*(store.ping() for _ in range(4)), return_exceptions=True)
        own_redis.resume()

        assert [type(result) for result in results] == [StoreUnavailableError] * 4
        async with asyncio.timeout(20):
            while True:
                try:
                    await store.ping()
                    break
                except StoreUnavailableError:
                    await asyncio.sleep(0)


async def test_failure_to_connect_releases_the_connection() -> None:
    async with AsyncSessionStore.from_url("redis://127.0.0.1:1/0", max_connections=1, deadline_s=20) as store:
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await store.ping()


async def test_call_that_connects_while_the_store_closes_is_not_sent(
    shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a call that is connecting
    connecting, may_connect = asyncio.Event(), asyncio.Event()
    connect: Any = redis.asyncio.Connection.connect

    async def connect_when_told(connection: Any) -> None:
        connecting.set()
        await may_connect.wait()
        await connect(connection)

    monkeypatch.setattr(redis.asyncio.Connection, "connect", connect_when_told)
    store = AsyncSessionStore.from_url(shared_redis.url, prefix=prefix, deadline_s=20)
    call = asyncio.create_task(store.environment("checkout", "staging").get("ci-42"))
    await connecting.wait()

    # When the store closes before the connection is made
    await store.aclose()
    may_connect.set()

    # Then the call fails, and no connection stays open
    with pytest.raises(StoreClosedError):
        await call
    assert [connection.is_connected for connection in idle(store)] == [False]
