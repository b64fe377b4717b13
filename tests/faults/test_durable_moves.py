"""Writes with `replicas=N` in a cluster and under Sentinel, whose primary is killed right after each of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
import redis

from sessionstore import AsyncEnvironment, NotDurableError, StoreUnavailableError

from ..support.adapter import Backend, Driver
from ..support.polling import await_true
from ..support.redis_cluster import RedisCluster
from ..support.redis_sentinel import READY_WITHIN_S, RedisSentinels
from ..support.redis_server import RedisServer
from ..support.replication import short_waits
from .conftest import SLOT

#: Writes after each of which the primary is killed. A failover takes some seconds, since the servers agree on it.
MOVES = max(1, int(os.environ.get("FAILOVERS", "0")) // 10)


async def put_until_served(staging: AsyncEnvironment, key: str, **terms: Any) -> Any:
    """Put a session again until it succeeds, as a client does while a replica is promoted."""
    async with asyncio.timeout(50):
        while True:
            try:
                return await staging.put(key, label=key, **terms)
            except (StoreUnavailableError, NotDurableError):
                await asyncio.sleep(0)


def await_replacement(primary: Callable[[], RedisServer], dead: RedisServer) -> None:
    await_true(lambda: primary() is not dead, "a promotion", ignore=redis.RedisError, timeout_s=READY_WITHIN_S)


async def lose_primaries(
    staging: AsyncEnvironment,
    primary: Callable[[], RedisServer],
    start_again: Callable[[RedisServer], object],
    await_healthy: Callable[[], None],
    replicas: int,
) -> None:
    """Kill the primary right after each write, and look for the write on the next one."""
    keys = [f"ci-{number}" for number in range(MOVES)]
    for key in keys:
        session = await put_until_served(staging, key, wait=False, replicas=replicas)
        dead = await asyncio.to_thread(primary)
        dead.kill()

        assert session.effect.replicas == replicas
        await put_until_served(staging, "other", wait=False, replicas=0)
        await asyncio.to_thread(await_replacement, primary, dead)
        await asyncio.to_thread(start_again, dead)
        await asyncio.to_thread(await_healthy)
        for written in keys[: keys.index(key) + 1]:
            found = await staging.get(written)
            assert found is not None, f"{written} is lost"
            assert found.label == written


@pytest.mark.timeout(60 + 20 * MOVES)
async def test_no_acknowledged_write_of_a_cluster_is_lost(driver: Driver, cluster: RedisCluster, prefix: str) -> None:
    """Given a shard with one replica, when its primary is killed after each write, then no write is lost."""
    async with Backend(driver, cluster, prefix).store(lease_s=0.1, deadline_s=10.0) as store:
        staging = store.environment("checkout", "staging")
        await lose_primaries(staging, lambda: cluster.primary_of(SLOT), RedisServer.start, cluster.await_healthy, 1)


@pytest.mark.timeout(60 + 20 * MOVES)
async def test_no_acknowledged_write_under_sentinel_is_lost(
    driver: Driver, sentinels: RedisSentinels, prefix: str
) -> None:
    """Given two replicas that both have each write, when the primary is killed after each, then no write is lost."""
    async with Backend(driver, sentinels, prefix).store(lease_s=0.1, deadline_s=10.0) as store:
        staging = store.environment("checkout", "staging")
        await lose_primaries(staging, lambda: sentinels.primary, sentinels.start_again, sentinels.await_healthy, 2)


async def test_a_slot_that_moves_takes_its_durable_writes_along(
    driver: Driver, cluster: RedisCluster, prefix: str
) -> None:
    """Given a store that has written durably, when the slot moves, then the next write is on the new replica."""
    before = cluster.primary_of(SLOT)
    target = next(cluster.primary_of(other) for other in (0, 8000, 16383) if cluster.primary_of(other) is not before)
    async with Backend(driver, cluster, prefix).store(lease_s=0.1, deadline_s=10.0, replicas=1) as store:
        staging = store.environment("checkout", "staging")
        await staging.put("ci-1", label="before")
        await asyncio.to_thread(cluster.migrate, SLOT, target)

        session = await put_until_served(staging, "ci-1")
        assert session.effect.replicas == 1
        [replica] = cluster.replicas_of(target)
        replica.pause()
        try:
            with short_waits(), pytest.raises(NotDurableError, match="and 0 had it"):
                await staging.put("ci-1", label="after")
        finally:
            replica.resume()
    await asyncio.to_thread(cluster.migrate, SLOT, before)


async def test_an_orderly_failover_leaves_no_old_connection(driver: Driver, cluster: RedisCluster, prefix: str) -> None:
    """Given many idle connections to the old primary, when another is promoted, then one durable write reaches it."""
    async with Backend(driver, cluster, prefix).store(lease_s=0.1, deadline_s=10.0, replicas=1) as store:
        staging = store.environment("checkout", "staging")
        await asyncio.gather(*(staging.put(f"ci-{number}", label="x", wait=False) for number in range(8)))
        [replica] = cluster.replicas_of(cluster.primary_of(SLOT))

        await asyncio.to_thread(cluster.fail_over, replica)

        session = await staging.put("ci-1", wait=False)
        assert session.effect is not None
        assert session.effect.replicas == 1
