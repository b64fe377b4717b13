"""Writes with `replicas=N` on a real primary with replicas: what they promise, and what they say if it does not hold.

A replica that is behind is one whose link holds everything. A stopped process would still apply, once it goes on, what
the kernel received for it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from sessionstore import (
    AsyncEnvironment,
    NotDurableError,
    OutcomeUnknownError,
    StoreClosedError,
    StoreUnavailableError,
)
from sessionstore.protocol.scripts import load_script

from ..conftest import require_redis_server
from ..support.adapter import Driver, open_at
from ..support.polling import eventually
from ..support.redis_server import RedisServer
from ..support.replication import Replication, short_waits

#: Writes after each of which the primary is killed, for each driver and number of replicas.
FAILOVERS = int(os.environ.get("FAILOVERS", "5"))
#: How long a write is on its way to a replica: far longer than from its answer to the end of the primary.
DELAY_S = 0.04
#: Far longer than anything takes; where a write waits in vain, `short_waits` shorten that.
DEADLINE_S = 10.0

CATALOG = {"project": "checkout", "environments": {"staging": {"mocks": [], "scenarios": []}}}


@pytest.fixture(scope="module")
def pair() -> Iterator[Replication]:
    """A primary and two replicas, which the tests leave running, with the roles they have."""
    require_redis_server()
    with Replication(2) as pair:
        yield pair


@pytest.fixture
def replication(pair: Replication) -> Iterator[Replication]:
    yield pair
    for link in pair.links.values():
        link.set()
    pair.await_in_step()
    with pair.primary.client() as client:
        client.flushall()


open_store = partial(open_at, lease_s=0.1, deadline_s=DEADLINE_S)


def in_flight(driver: Driver, call: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
    """Begin a call; for threads in another one."""

    async def run() -> Any:
        return await call()

    if driver == "asyncio":
        return asyncio.ensure_future(run())
    return asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(run()))


def hold(replication: Replication, *replicas: RedisServer) -> None:
    for replica in replicas:
        replication.links[replica].set(to_client="hold")


def blocked(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.info("clients")["blocked_clients"])


def label_on(server: RedisServer, key: str) -> str | None:
    with server.client(decode_responses=True) as client:
        label: str | None = client.hget(f"ss:{{checkout}}:staging:s:{key}", "label")
        return label


WRITES: dict[str, Callable[[AsyncEnvironment], Awaitable[Any]]] = {
    "put": lambda staging: staging.put("ci-1", label="new"),
    "activate": lambda staging: staging.activate("ci-1", "ovr_a"),
    "deactivate": lambda staging: staging.deactivate("ci-1", "ovr_set"),
    "reset": lambda staging: staging.reset("ci-1"),
    "delete": lambda staging: staging.delete("ci-1"),
    "delete_prefix": lambda staging: staging.delete_prefix("ci-"),
    "reset_prefix": lambda staging: staging.reset_prefix("ci-"),
}


async def _delete_again(staging: AsyncEnvironment) -> Any:
    return await staging.delete("ci-gone")


def test_the_fence_is_always_replicated(replication: Replication) -> None:
    """Given nothing to change, when the fence runs, then WAIT has something to wait for."""
    fence = load_script("fence").text
    with replication.primary.client() as client:
        before = client.info("replication")["master_repl_offset"]
        client.eval(fence, 1, "ss:{checkout}:staging:head")
        once = client.info("replication")["master_repl_offset"]
        client.eval(fence, 1, "ss:{checkout}:staging:head")

        assert before < once < client.info("replication")["master_repl_offset"]


class TestEnoughReplicas:
    @pytest.mark.parametrize("write", WRITES)
    async def test_each_write_is_on_them(self, driver: Driver, replication: Replication, write: str) -> None:
        """Given a write whose way to both replicas is slow, when it returns, then both have it."""
        async with open_store(driver, replication.url, replicas=2) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-1", label="old", overrides=["ovr_set"], replicas=0)

            result = await WRITES[write](staging)

            states = [server.client().hgetall("ss:{checkout}:staging:s:ci-1") for server in replication.replicas]
            with replication.primary.client() as client:
                assert states == [client.hgetall("ss:{checkout}:staging:s:ci-1")] * 2
        assert result.effect.replicas == 2
        assert result.effect.durable_s > 0.0

    async def test_a_catalog(self, driver: Driver, replication: Replication) -> None:
        async with open_store(driver, replication.url) as store:
            report = await store.project("checkout").apply_catalog(CATALOG, replicas=2)

        [environment] = report.environments
        assert environment.effect is not None
        assert environment.effect.replicas == 2

    async def test_the_url_asks_for_them(self, driver: Driver, replication: Replication) -> None:
        async with open_store(driver, replication.url + "?replicas=2") as store:
            session = await store.environment("checkout", "staging").put("ci-1")

        assert session.effect is not None
        assert session.effect.replicas == 2

    async def test_views_serve_the_write_when_it_returns(self, driver: Driver, replication: Replication) -> None:
        async with open_store(driver, replication.url, replicas=2) as store:
            staging = store.environment("checkout", "staging")
            async with staging.view(on_stale="raise") as view:
                for number in range(20):
                    session = await staging.put("ci-1", label=f"{number}", views=1)
                    held = view.get("ci-1")
                    assert held is not None
                    assert held.label == f"{number}"

        assert session.effect is not None
        assert (session.effect.replicas, session.effect.confirmed) == (2, 1)

    async def test_a_write_that_does_not_wait_for_views_waits_for_replicas(
        self, driver: Driver, replication: Replication
    ) -> None:
        async with open_store(driver, replication.url) as store:
            session = await store.environment("checkout", "staging").put("ci-1", wait=False, replicas=2)

        assert session.effect is not None
        assert (session.effect.waited, session.effect.replicas) == (False, 2)

    async def test_redis_forgets_the_scripts(self, driver: Driver, replication: Replication) -> None:
        async with open_store(driver, replication.url, replicas=2) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-1", label="a")
            with replication.primary.client() as client:
                client.script_flush()

            session = await staging.put("ci-1", label="b")

        assert session.effect is not None
        assert session.effect.replicas == 2


class TestTooFewReplicas:
    @pytest.mark.parametrize("write", WRITES)
    async def test_the_error_says_that_the_write_is_committed(
        self, driver: Driver, replication: Replication, write: str
    ) -> None:
        """Given one replica of two that is behind, when a write asks for both, then it says that one has it."""
        async with open_store(driver, replication.url) as store:
            staging = store.environment("checkout", "staging")
            for key in ("ci-1", "ci-2"):
                await staging.put(key, label="old", overrides=["ovr_set"], replicas=2)
            hold(replication, replication.replicas[0])
            before = await staging.get("ci-1")

            with (
                short_waits(),
                pytest.raises(NotDurableError, match="replicas=2 was asked for, and 1 had it") as caught,
            ):
                await WRITES[write](_with(staging, replicas=2))

            after = await staging.get("ci-1")
        assert before != after, "it is committed"
        assert caught.value.replicas == 1
        assert caught.value.revision in (None, after and after.revision)

    @pytest.mark.parametrize("write", [*WRITES, "delete again"])
    async def test_a_write_that_changes_nothing_waits_for_the_one_that_did(
        self, driver: Driver, replication: Replication, write: str
    ) -> None:
        """Given a write that no replica has, when it is repeated with `replicas`, then it is not durable either."""
        call = WRITES.get(write, _delete_again)
        async with open_store(driver, replication.url) as store, open_store(driver, replication.url) as other:
            await store.environment("checkout", "staging").put("ci-1", label="old", overrides=["ovr_set"], replicas=2)
            hold(replication, *replication.replicas)
            await call(other.environment("checkout", "staging"))

            with short_waits(), pytest.raises(NotDurableError, match="and 0 had it") as caught:
                await call(_with(store.environment("checkout", "staging"), replicas=1))

            assert caught.value.replicas == 0
            for link in replication.links.values():
                link.set()
            result = await call(_with(store.environment("checkout", "staging"), replicas=2))
        assert result.effect.replicas == 2

    async def test_a_catalog_that_is_applied_again(self, driver: Driver, replication: Replication) -> None:
        async with open_store(driver, replication.url) as store:
            project = store.project("checkout")
            hold(replication, *replication.replicas)
            await project.apply_catalog(CATALOG)

            with short_waits(), pytest.raises(NotDurableError, match="and 0 had it"):
                await project.apply_catalog(CATALOG, replicas=1)

    async def test_an_apply_stops_at_the_environment_that_is_not_durable(
        self, driver: Driver, replication: Replication
    ) -> None:
        empty: dict[str, Any] = {"mocks": [], "scenarios": []}
        async with open_store(driver, replication.url) as store:
            project = store.project("checkout")
            await project.apply_catalog({"project": "checkout", "environments": {"a": empty, "b": empty}}, replicas=2)
            more = {**empty, "mocks": [{"id": "ovr_a", "name": "a"}]}
            hold(replication, replication.replicas[0])

            with short_waits(), pytest.raises(NotDurableError, match=r"as revision 1 of checkout/a, .* and 1 had it"):
                await project.apply_catalog(
                    {"project": "checkout", "environments": {"a": empty, "b": more}}, replicas=2
                )
            catalog = await store.environment("checkout", "b").catalog()
        assert catalog is not None
        assert not catalog.mocks

    async def test_it_is_in_effect_nevertheless(self, driver: Driver, replication: Replication) -> None:
        async with open_store(driver, replication.url) as store:
            staging = store.environment("checkout", "staging")
            async with staging.view(on_stale="raise") as view:
                hold(replication, *replication.replicas)

                with short_waits(), pytest.raises(NotDurableError):
                    await staging.put("ci-1", label="new", replicas=1)

                held = view.get("ci-1")
        assert held is not None
        assert held.label == "new"

    async def test_a_stopped_replica(self, driver: Driver, replication: Replication) -> None:
        async with open_store(driver, replication.url) as store:
            staging = store.environment("checkout", "staging")
            stopped = replication.replicas[1]
            stopped.pause()
            try:
                with short_waits(), pytest.raises(NotDurableError, match="and 1 had it"):
                    await staging.put("ci-1", replicas=2)
            finally:
                stopped.resume()

            session = await staging.put("ci-1", replicas=2)
        assert session.effect is not None
        assert session.effect.replicas == 2

    async def test_a_user_who_may_not_wait(self, driver: Driver, replication: Replication) -> None:
        with replication.primary.client() as client:
            client.execute_command("ACL", "SETUSER", "weary", "on", ">secret", "~*", "&*", "+@all", "-wait")
        url = replication.url.replace("//", "//weary:secret@")
        async with open_store(driver, url) as store:
            staging = store.environment("checkout", "staging")

            with short_waits(), pytest.raises(NotDurableError, match="denies this user WAIT"):
                await staging.put("ci-1", label="new", replicas=1)

            session = await staging.get("ci-1")
        assert session is not None


class TestWhileItWaits:
    async def test_other_calls_go_on(self, driver: Driver, replication: Replication) -> None:
        """Given writes that wait in vain, when others read and write, then they don't wait with them."""
        hold(replication, *replication.replicas)
        async with open_store(driver, replication.url) as store:
            staging = store.environment("checkout", "staging")
            waiting = [in_flight(driver, partial(staging.put, f"ci-{n}", replicas=1, wait=False)) for n in range(4)]
            await eventually(lambda: blocked(replication.primary) == 4, "they wait")

            await staging.put("ci-9", label="other")
            session = await staging.get("ci-9")

            assert session is not None
            assert not any(call.done() for call in waiting)
            for link in replication.links.values():
                link.set()
            for call in waiting:
                assert (await call).effect.replicas >= 1

    async def test_they_are_bounded(self, driver: Driver, replication: Replication) -> None:
        """Given as many waiting writes as may be, when another comes, then it fails and nothing was changed."""
        hold(replication, *replication.replicas)
        async with open_store(driver, replication.url, max_connections=4, deadline_s=2.0) as store:
            staging = store.environment("checkout", "staging")
            waiting = [in_flight(driver, partial(staging.put, f"ci-{n}", replicas=1, wait=False)) for n in range(2)]
            await eventually(lambda: blocked(replication.primary) == 2, "they wait")

            with pytest.raises(StoreUnavailableError, match="has no connection left") as caught:
                await in_flight(driver, partial(staging.put, "ci-9", replicas=1))

            assert type(caught.value) is StoreUnavailableError
            assert await staging.get("ci-9") is None
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, NotDurableError)

    async def test_a_primary_that_is_demoted(self, driver: Driver, replication: Replication) -> None:
        """Given a waiting write, when the primary becomes a replica, then its outcome is unknown."""
        hold(replication, *replication.replicas)
        async with open_store(driver, replication.url) as store:
            staging = store.environment("checkout", "staging")
            write = in_flight(driver, partial(staging.put, "ci-1", replicas=1))
            await eventually(lambda: blocked(replication.primary) == 1, "it waits")
            with replication.primary.client() as client:
                client.replicaof("127.0.0.1", 1)
                try:
                    with pytest.raises(OutcomeUnknownError, match="a failover may lose it"):
                        await write
                    with pytest.raises(StoreUnavailableError, match="read-only replica"):
                        await staging.put("ci-1", replicas=1)
                finally:
                    client.replicaof("NO", "ONE")
            for link in replication.links.values():
                link.set()
                link.disconnect()

            session = await staging.put("ci-1", replicas=2)
        assert session.effect is not None
        assert session.effect.replicas == 2

    async def test_a_connection_that_breaks(self, driver: Driver, replication: Replication) -> None:
        hold(replication, *replication.replicas)
        async with open_store(driver, replication.url) as store:
            write = in_flight(driver, partial(store.environment("checkout", "staging").put, "ci-1", replicas=1))
            await eventually(lambda: blocked(replication.primary) == 1, "it waits")

            replication.front.disconnect()

            with pytest.raises(OutcomeUnknownError, match="the connection to Redis broke"):
                await write

    async def test_a_cancelled_write_closes_its_connection(self, replication: Replication) -> None:
        hold(replication, *replication.replicas)
        async with open_store("asyncio", replication.url, deadline_s=60.0) as store:
            staging = store.environment("checkout", "staging")
            write = asyncio.ensure_future(staging.put("ci-1", label="a", replicas=1))
            await eventually(lambda: blocked(replication.primary) == 1, "it waits")

            write.cancel()

            await asyncio.gather(write, return_exceptions=True)
            await eventually(lambda: blocked(replication.primary) == 0, "its connection is closed")
            for link in replication.links.values():
                link.set()
            session = await staging.put("ci-1", label="b", replicas=1)
        assert session.label == "b"

    async def test_the_store_is_closed(self, driver: Driver, replication: Replication) -> None:
        hold(replication, *replication.replicas)
        store = open_store(driver, replication.url)
        staging = store.environment("checkout", "staging")
        write = in_flight(driver, partial(staging.put, "ci-1", replicas=1))
        await eventually(lambda: blocked(replication.primary) == 1, "it waits")

        await store.aclose()

        with pytest.raises(OutcomeUnknownError):
            await write
        with pytest.raises(StoreClosedError):
            await staging.put("ci-1", replicas=1)


async def test_a_primary_that_is_killed_while_a_write_waits(driver: Driver) -> None:
    """Given a write that no replica has yet, when the primary dies, then its outcome is unknown; here it is lost."""
    require_redis_server()
    with Replication() as replication:
        async with open_store(driver, replication.url) as store:
            [replica] = replication.replicas
            hold(replication, replica)
            write = in_flight(driver, partial(store.environment("checkout", "staging").put, "ci-1", replicas=1))
            await eventually(lambda: blocked(replication.primary) == 1, "it waits")

            await asyncio.to_thread(replication.lose_primary, replica)

            with pytest.raises(OutcomeUnknownError):
                await write
            assert await store.environment("checkout", "staging").get("ci-1") is None


async def test_a_full_redis_still_confirms_a_deletion(driver: Driver, replication: Replication) -> None:
    async with open_store(driver, replication.url) as store:
        staging = store.environment("checkout", "staging")
        await staging.put("ci-1", replicas=2)
        with replication.primary.client() as client:
            client.config_set("maxmemory", 1)
            try:
                deletion = await staging.delete("ci-1", replicas=2)
            finally:
                client.config_set("maxmemory", 0)

    assert deletion
    assert deletion.effect is not None
    assert deletion.effect.replicas == 2


class TestFailover:
    @pytest.mark.parametrize("replicas", [1, 2])
    async def test_no_acknowledged_write_is_lost(self, driver: Driver, replicas: int) -> None:
        """Given as many replicas as writes ask for, when the primary is killed after each write, then none is lost."""
        require_redis_server()
        with Replication(replicas, delay_s=DELAY_S) as replication:
            lost = await lose_primaries(driver, replication, FAILOVERS, replicas=replicas)
        assert lost == []

    async def test_without_replicas_writes_are_lost(self, driver: Driver) -> None:
        """The same run finds lost writes, so it can fail."""
        require_redis_server()
        with Replication(delay_s=DELAY_S) as replication:
            lost = await lose_primaries(driver, replication, 3, replicas=0)
        assert lost

    async def test_one_of_two_replicas_is_not_enough_if_the_other_is_promoted(self, driver: Driver) -> None:
        require_redis_server()
        with Replication(2) as replication:
            async with open_store(driver, replication.url) as store:
                staging = store.environment("checkout", "staging")
                behind = replication.replicas[1]
                hold(replication, behind)

                session = await staging.put("ci-1", replicas=1)
                await asyncio.to_thread(replication.lose_primary, behind)

                assert session.effect is not None
                assert session.effect.replicas == 1
                assert await staging.get("ci-1") is None


async def lose_primaries(driver: Driver, replication: Replication, count: int, *, replicas: int) -> list[str]:
    """Kill the primary right after each of `count` writes; returns the keys of those that are lost."""
    rng = random.Random(1)
    async with open_store(driver, replication.url) as store:
        staging = store.environment("checkout", "staging")
        keys = [f"ci-{number}" for number in range(count)]
        for key in keys:
            # A write that waits for views would wait a lease after each failover.
            await staging.put(key, label=key, wait=False, replicas=replicas)
            await asyncio.to_thread(replication.lose_primary, rng.choice(replication.replicas))
            await asyncio.to_thread(replication.await_in_step)
        return [key for key in keys if label_on(replication.primary, key) != key]


def _with(staging: AsyncEnvironment, **terms: Any) -> Any:
    """The environment, with further arguments for each write."""

    class Asking:
        def __getattr__(self, name: str) -> Any:
            return partial(getattr(staging, name), **terms)

    return Asking()
