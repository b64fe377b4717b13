"""A cluster and sentinels whose servers a test may stop: they run again before the next test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from ..conftest import require_redis_server
from ..support.redis_cluster import RedisCluster
from ..support.redis_sentinel import RedisSentinels

#: The slot of the project ``checkout``.
SLOT = key_slot(b"checkout")

slow = pytest.mark.skipif(not os.environ.get("REDIS_KINDS"), reason="slow; set REDIS_KINDS, as make test-all does")


@pytest.fixture(scope="module")
def lasting_cluster() -> Iterator[RedisCluster]:
    """What is behind `cluster`."""
    require_redis_server()
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(lasting_cluster: RedisCluster) -> RedisCluster:
    """A real cluster for one test after the other, which may move slots and stop nodes."""
    for node in lasting_cluster.nodes:
        if not node.is_running:
            node.start()
    lasting_cluster.await_healthy()
    return lasting_cluster


@pytest.fixture(scope="module")
def lasting_sentinels() -> Iterator[RedisSentinels]:
    """What is behind `sentinels`."""
    require_redis_server()
    with RedisSentinels() as sentinels:
        yield sentinels


@pytest.fixture
def sentinels(lasting_sentinels: RedisSentinels) -> Iterator[RedisSentinels]:
    """A real primary with sentinels for one test after the other, which may fail over."""
    lasting_sentinels.await_healthy()
    yield lasting_sentinels
    # pytest shows this with a failed test.
    print(lasting_sentinels.last_words())
