"""The store's contract, four ways: for threads and asyncio, on fakeredis and on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sessionstore import AsyncEnvironment, AsyncSessionStore

from ..support.adapter import Backend


@pytest.fixture(params=["sync-fakeredis", "sync-redis", "asyncio-fakeredis", "asyncio-redis"])
def backend(request: pytest.FixtureRequest, prefix: str) -> Iterator[Backend]:
    driver, server = request.param.split("-")
    fixture = "embedded_server" if server == "fakeredis" else "shared_redis"
    backend = Backend(driver, request.getfixturevalue(fixture), prefix)
    yield backend
    backend.close()


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[AsyncSessionStore]:
    # The shortest lease, because the first write to a new server waits for a whole one.
    async with backend.store(lease_s=0.1) as store:
        yield store


@pytest.fixture
def staging(store: AsyncSessionStore) -> AsyncEnvironment:
    return store.environment("checkout", "staging")
