"""A store on a cluster and under Sentinel that talk TLS only, with certificates by options of the URL."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from sessionstore import AsyncSessionStore, AsyncView, Session, StoreUnavailableError

from ..conftest import require_tls
from ..support.adapter import Backend, Driver
from ..support.certificate import OTHER_HOST, client_options, make_certificate
from ..support.polling import eventually
from ..support.redis_cluster import RedisCluster
from ..support.redis_sentinel import PATIENT_MS, RedisSentinels
from ..support.redis_server import RedisServer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    require_tls()
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def tls_cluster(certificate: str) -> Iterator[RedisCluster]:
    with RedisCluster(2, 0, certificate=certificate) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tls_sentinels(certificate: str) -> Iterator[RedisSentinels]:
    with RedisSentinels(1, 2, down_after_ms=PATIENT_MS, certificate=certificate) as sentinels:
        yield sentinels


@pytest.fixture(params=["cluster", "sentinels"])
def servers(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"tls_{request.param}")


@pytest.fixture(params=["sync", "asyncio"])
def backend(request: pytest.FixtureRequest, servers: Any, prefix: str) -> Iterator[Backend]:
    backend = Backend(cast(Driver, request.param), servers, prefix)
    yield backend
    backend.close()


async def test_views_follow_a_primary_that_moves(servers: Any, prefix: str) -> None:
    # Given a store and a view of each driver
    drivers: list[Driver] = ["sync", "asyncio"]
    backends = [Backend(driver, servers, f"{prefix}-{driver}") for driver in drivers]
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(backend.store(lease_s=1.0)) for backend in backends]
        environments = [store.environment("checkout", "staging") for store in stores]
        views = [await stack.enter_async_context(environment.view()) for environment in environments]

        for staging, view in zip(environments, views, strict=True):
            session = await staging.put("ci-42", label="before")
            assert view.get("ci-42") == session

        # When another server becomes the primary of their project
        if isinstance(servers, RedisSentinels):
            await asyncio.to_thread(servers.fail_over)
        else:
            slot = servers.slot_of("{checkout}")
            here = servers.primary_of(slot)
            await asyncio.to_thread(servers.migrate, slot, next(node for node in servers.nodes if node is not here))

        # Then each fresh view serves what is written there, and one that the move took out of touch soon does
        def is_served(view: AsyncView, session: Session) -> bool:
            return view.fresh and view.get("ci-42") == session

        for staging, view in zip(environments, views, strict=True):
            session = await staging.put("ci-42", label="after")
            fresh, found = view.fresh, view.get("ci-42")
            assert not fresh or found == session
            await eventually(partial(is_served, view, session))
    for backend in backends:
        backend.close()


async def test_a_client_of_the_callers(backend: Backend, certificate: str) -> None:
    client = backend.client(ssl=True, **client_options(certificate))
    async with backend.on_client(client, lease_s=1.0) as store:
        staging = store.environment("checkout", "staging")
        async with staging.view() as view:
            session = await staging.put("ci-42")
            assert view.get("ci-42") == session
    await (client.aclose() if backend.driver == "asyncio" else asyncio.to_thread(client.close))


def test_closing_an_asyncio_store_waits_for_no_server(certificate: str) -> None:
    async def close_while_it_hangs() -> None:
        async with AsyncSessionStore.from_url(server.url, deadline_s=0.5) as store:
            view = await store.environment("checkout", "staging").view().open()
            await store.check_primaries(20)
            server.pause()
        assert not view.fresh

    with RedisServer(certificate=certificate) as server:
        gc.collect()
        asyncio.run(close_while_it_hangs())
        # A connection that is still open warns when it is forgotten
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gc.collect()
    assert [str(each.message) for each in caught] == []


async def test_certificates_are_checked(backend: Backend, tmp_path: Path) -> None:
    url = backend.server.url  # type: ignore[union-attr]
    untrusted = f"{url.partition('?')[0]}?ssl_ca_certs={make_certificate(tmp_path)}"
    elsewhere = url.replace("127.0.0.1", OTHER_HOST)

    for wrong in (untrusted, elsewhere):
        async with backend.store_at(wrong) as store:
            with pytest.raises(StoreUnavailableError, match="not trusted or not for its address") as caught:
                await store.environment("checkout", "staging").put("ci-42")
            assert "127.0.0" not in str(caught.value)
    async with backend.store_at(f"{elsewhere}&ssl_check_hostname=false") as store:
        await store.environment("checkout", "staging").put("ci-42")
