"""The store's contract: for threads and asyncio, on fakeredis and on a real Redis.

REDIS_KINDS="cluster sentinels" adds these two. Without it, `test_cluster.py` runs a part there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from sessionstore import AsyncEnvironment, AsyncSessionStore

from ..support.adapter import Backend

#: The fixture of each kind of server.
FIXTURES = {
    "fakeredis": "embedded_server",
    "redis": "shared_redis",
    "cluster": "shared_cluster",
    "sentinels": "shared_sentinels",
}
KINDS = ["fakeredis", "redis", *os.environ.get("REDIS_KINDS", "").split()]


@pytest.fixture(params=[f"{driver}-{kind}" for driver in ("sync", "asyncio") for kind in KINDS])
def backend(request: pytest.FixtureRequest, prefix: str) -> Iterator[Backend]:
    driver, kind = request.param.split("-")
    backend = Backend(driver, request.getfixturevalue(FIXTURES[kind]), prefix)
    yield backend
    backend.close()


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[AsyncSessionStore]:
    # A busy machine must not let a view's lease run out: the view then serves a write a little after its caller. The
    # first write to a new server waits for a whole lease, and each test has a fakeredis of its own.
    async with backend.store(lease_s=1.0 if backend.real else 0.1) as store:
        yield store


@pytest.fixture
def staging(store: AsyncSessionStore) -> AsyncEnvironment:
    return store.environment("checkout", "staging")
