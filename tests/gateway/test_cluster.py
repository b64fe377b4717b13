"""The gateway on a cluster and under Sentinel: keys, limits and sessions."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.limits import Limit, RateLimiter
from sessionstore import AsyncSessionStore

from ..support.redis_cluster import RedisCluster
from ..support.redis_sentinel import RedisSentinels


@pytest.fixture(params=["shared_cluster", "shared_sentinels"])
def servers(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


async def test_requests_of_each_key_are_counted_over_all_gateways(
    servers: RedisCluster | RedisSentinels, prefix: str
) -> None:
    stores = [AsyncSessionStore.from_url(servers.url, prefix=prefix) for _ in range(2)]
    limiters = [RateLimiter(store, Limit(4, 60)) for store in stores]

    for key in (12 * digit for digit in "abc"):
        statuses = [await limiter.hit(key) for _ in range(3) for limiter in limiters]

        assert [status and status.exceeded for status in statuses] == [False] * 4 + [True] * 2
        assert statuses[-1] is not None
        assert 58 <= statuses[-1].retry_after_s <= 60
    for store in stores:
        await store.aclose()
