"""The store on a cluster and under Sentinel: a part of its contract, and what a project costs the other shards.

REDIS_KINDS="cluster sentinels" runs the whole contract there.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest

from sessionstore import (
    AsyncSessionStore,
    LiveCounts,
    NewApiKey,
    QuotaExceededError,
    SessionStore,
    StoreUnavailableError,
)
from sessionstore.transport import driver as routes

from ..conftest import require_redis_server
from ..support.adapter import Backend, Driver, as_async
from ..support.polling import PATIENCE_S, eventually
from ..support.redis_cluster import RedisCluster
from ..support.redis_sentinel import RedisSentinels
from ..support.redis_server import RedisServer, free_port
from ..support.relay import Relay

#: What a node runs for its replicas, for the test itself, and once for a store that asks where the primaries are.
_OF_OTHERS = ("client", "cluster", "hello", "info", "ping", "psync", "publish", "pubsub", "replconf")


@pytest.fixture(params=["sync-cluster", "asyncio-cluster", "sync-sentinels", "asyncio-sentinels"])
def backend(request: pytest.FixtureRequest, prefix: str) -> Iterator[Backend]:
    driver, kind = request.param.split("-")
    backend = Backend(cast(Driver, driver), request.getfixturevalue(f"shared_{kind}"), prefix)
    yield backend
    backend.close()


async def test_sessions_of_many_projects(store: AsyncSessionStore) -> None:
    await store.ping()
    for project in ("checkout", "search", "billing", "login"):
        staging = store.environment(project, "staging")
        async with staging.view() as view:
            session = await staging.put("ci-42", label=project, overrides=["ovr_a"])
            assert view.get("ci-42") == await staging.get("ci-42") == session
            await staging.deactivate("ci-42", "ovr_a")
            await staging.activate("ci-42", "ovr_b")
            found = view.get("ci-42")
            assert found is not None
            assert found.overrides == ("ovr_b",)
            await staging.reset("ci-42")
            assert await staging.touch({"ci-42": 1, "ci-43": 1}) == 1
            assert [session.session_key for session in (await staging.list()).sessions] == ["ci-42"]
            assert len(await staging.views()) == 1
            assert (await staging.delete_prefix("ci-")).count == 1
            assert view.get("ci-42") is None


async def test_views_of_many_projects_at_once(store: AsyncSessionStore) -> None:
    projects = [f"project-{number}" for number in range(12)]
    views = [await store.environment(project, "staging").view().open() for project in projects]
    for project, view in zip(projects, views, strict=True):
        await store.environment(project, "staging").put("ci-42", label=project)
        assert [other.get("ci-42") is not None for other in views].count(True) == projects.index(project) + 1
        found = view.get("ci-42")
        assert found is not None
        assert found.label == project
    for view in views:
        await view.aclose()


async def test_catalogs(store: AsyncSessionStore) -> None:
    catalog = {"mocks": [], "scenarios": [{"id": "scn_b", "name": "B", "urlId": "b"}]}
    project = store.project("checkout")
    await project.apply_catalog({"project": "checkout", "environments": {"staging": catalog, "production": {}}})
    async with store.environment("checkout", "staging").view() as view:
        await store.environment("checkout", "staging").put("ci-42", scenario="scn_b")
        report = await project.apply_catalog({"project": "checkout", "environments": {"staging": {}}})
        assert report.sessions == 1
        session = view.get("ci-42")
        assert session is not None
        assert session.scenario is None
        assert await project.environments() == ("production", "staging")
        assert await project.live_counts() == {"staging": LiveCounts(1, 1), "production": LiveCounts(0, 0)}


async def test_quotas(backend: Backend) -> None:
    # Given sessions from before, in projects of different shards
    projects = [f"p{n}" for n in range(6)]
    async with backend.store(lease_s=0.1) as free:
        for project in projects:
            await free.environment(project, "staging").put("a")

    async with backend.store(lease_s=0.1, max_sessions=2) as bound:
        for project in projects:
            await bound.environment(project, "staging").put("b")
            with pytest.raises(QuotaExceededError):
                await bound.environment(project, "staging").put("c")


async def test_api_keys(store: AsyncSessionStore) -> None:
    key: NewApiKey = await store.api_keys.create("ci", project="checkout")
    await store.api_keys.mark_used({key.key.id: (await store.api_keys.snapshot()).now})
    await store.api_keys.revoke(key.key.id)
    [found] = await store.api_keys.list()
    assert found.id == key.key.id
    assert found.revoked_at is not None
    assert found.last_used_at is not None


async def test_a_client_of_the_callers(backend: Backend) -> None:
    client = backend.client()
    async with backend.on_client(client, lease_s=1.0) as store:
        staging = store.environment("checkout", "staging")
        async with staging.view() as view:
            await staging.put("ci-42")
            assert view.get("ci-42") is not None
    await (client.aclose() if backend.driver == "asyncio" else asyncio.to_thread(client.close))


async def test_checks_each_primary(store: AsyncSessionStore, backend: Backend) -> None:
    servers = backend.server
    assert isinstance(servers, RedisCluster | RedisSentinels)
    primaries = servers.nodes[:3] if isinstance(servers, RedisCluster) else [servers.primary]
    assert await store.check_primaries(20) == dict.fromkeys(f"127.0.0.1:{node.port}" for node in primaries)


async def test_addresses_that_the_nodes_announce_are_remapped(
    driver: Driver, shared_cluster: RedisCluster, prefix: str
) -> None:
    backend = Backend(driver, shared_cluster, prefix)
    primary = shared_cluster.primary_of(shared_cluster.slot_of("{checkout}"))
    with ExitStack() as stack:
        relays = {node.port: stack.enter_context(Relay(node.port)) for node in shared_cluster.nodes}
        client = backend.client(address_remap=lambda address: ("127.0.0.1", relays[address[1]].port))
        async with backend.on_client(client, lease_s=0.1) as store:
            staging = store.environment("checkout", "staging")
            async with staging.view():
                await staging.put("ci-42")
                assert relays[primary.port].connections >= 2
        await (client.aclose() if driver == "asyncio" else asyncio.to_thread(client.close))
    backend.close()


async def test_connections_of_a_project_that_is_not_used_any_more_are_closed(
    driver: Driver, shared_cluster: RedisCluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "IDLE_ROUTE_S", 0.0)
    backend = Backend(driver, shared_cluster, prefix)
    primary = shared_cluster.primary_of(shared_cluster.slot_of("{checkout}"))
    names = (f"project-{number}" for number in range(1000))
    other = next(
        name for name in names if shared_cluster.primary_of(shared_cluster.slot_of(f"{{{name}}}")) is not primary
    )
    async with backend.store_at(f"{shared_cluster.url}?client_name={prefix}", lease_s=0.1, deadline_s=0.5) as store:
        staging = store.environment("checkout", "staging")
        view = await staging.view().open()
        await staging.put("ci-42")
        elsewhere = store.environment(other, "staging")

        async def use_another() -> int:
            await elsewhere.get("ci-42")
            return len(primary.clients(prefix))

        # A view keeps them
        started = time.monotonic()
        while time.monotonic() < started + 2 * 0.5 + 1:
            await use_another()
        driver_of_view: Any = view._driver
        assert driver_of_view in [route.driver for route in store._runner._routes or ()]
        await view.aclose()
        while await use_another():
            assert time.monotonic() < started + 20

        # And the project can be used again
        assert await staging.get("ci-42") is not None
        await staging.put("ci-42", label="again")
    backend.close()


async def test_tells_which_primaries_are_down(prefix: str) -> None:
    require_redis_server()
    with RedisCluster(2, 0) as cluster:
        drivers: list[Driver] = ["sync", "asyncio"]
        backends = [Backend(driver, cluster, prefix) for driver in drivers]
        stores = [backend.store() for backend in backends]

        async def await_checks(*up: bool) -> None:
            """Wait until each store tells that of each node."""
            wanted = {f"127.0.0.1:{node.port}": is_up for node, is_up in zip(cluster.nodes, up, strict=True)}
            for store in stores:
                deadline = time.monotonic() + PATIENCE_S
                while {name: error is None for name, error in (await store.check_primaries(20)).items()} != wanted:
                    assert time.monotonic() < deadline

        await await_checks(True, True)
        cluster.nodes[0].kill()
        await await_checks(False, True)
        cluster.nodes[0].start()
        await await_checks(True, True)
        # A primary that no call has met
        cluster.migrate(0, cluster.add_primary())
        await await_checks(True, True, True)
        for store in stores:
            await store.aclose()
        for backend in backends:
            backend.close()


async def test_says_so_if_no_node_names_the_primaries(driver: Driver) -> None:
    url = f"redis+cluster://127.0.0.1:{free_port()}"
    store: Any = SessionStore.from_url(url) if driver == "sync" else AsyncSessionStore.from_url(url)
    async with as_async(store) if driver == "sync" else store as opened:
        with pytest.raises(StoreUnavailableError, match="can't be reached"):
            await opened.check_primaries(20)


def commands(cluster: RedisCluster) -> dict[int, Counter[str]]:
    """How often each node has run each command, by its port."""
    counts: dict[int, Counter[str]] = {}
    for node in cluster.nodes:
        with node.client() as client:
            stats: dict[str, Any] = client.info("commandstats")
        counts[node.port] = Counter(
            {
                name.removeprefix("cmdstat_"): value["calls"] + value["rejected_calls"]
                for name, value in stats.items()
                if name.removeprefix("cmdstat_").split("|")[0] not in _OF_OTHERS
            }
        )
    return counts


def channels(node: RedisServer) -> int:
    with node.client() as client:
        return len(client.execute_command("PUBSUB", "SHARDCHANNELS")) + len(client.pubsub_channels())


async def test_a_project_costs_the_other_shards_nothing(driver: Driver, own_cluster: RedisCluster, prefix: str) -> None:
    backend = Backend(driver, own_cluster, prefix)
    primary = own_cluster.primary_of(own_cluster.slot_of("{checkout}"))
    shard = [primary, *own_cluster.replicas_of(primary)]
    others = [node for node in own_cluster.nodes if node not in shard]
    before = commands(own_cluster)

    async with backend.store(lease_s=0.3) as store, backend.store(lease_s=0.3) as writer:
        staging = writer.environment("checkout", "staging")
        async with store.environment("checkout", "staging").view(touch_interval_s=0.01):
            assert [channels(node) for node in others] == [0] * 4
            for number in range(20):
                session = await staging.put("ci-42", label=f"{number}")
                assert await staging.get("ci-42") == session
            await staging.touch({"ci-42": 1})
            await staging.delete("ci-42")
            now = commands(own_cluster)
            # Renewals, acknowledgements and the view's touches
            await eventually(lambda: (commands(own_cluster)[primary.port] - now[primary.port])["evalsha"] > 4)
            assert [channels(node) for node in others] == [0] * 4
            assert channels(primary) >= 1

    after = commands(own_cluster)
    assert {node.port: after[node.port] - before[node.port] for node in others} == {
        node.port: Counter() for node in others
    }
    run = after[primary.port] - before[primary.port]
    assert run["evalsha"] > 60
    assert run["ssubscribe"] >= 2
    assert run["spublish"] > 20
    backend.close()
