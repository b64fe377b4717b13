"""Views open, follow each change, serve each returned write, and touch looked-up sessions."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from sessionstore import (
    AsyncEnvironment,
    AsyncSessionStore,
    EnvironmentNotFoundError,
    InvalidInputError,
    Session,
    StaleView,
    StoreClosedError,
    StoreUnavailableError,
    TooFewViewsError,
    __version__,
)
from sessionstore.protocol.calls import TOUCH_BATCH
from sessionstore.replica.replica import Replica

from ..conftest import require_redis_server
from ..support.adapter import Backend
from ..support.polling import eventually
from ..support.redis_server import RedisServer

#: Seconds. A slow machine must be able to renew such a lease in time.
LEASE_S = 2.0


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[AsyncSessionStore]:
    async with backend.store(lease_s=LEASE_S) as store:
        yield store


@pytest.fixture
async def other_store(backend: Backend) -> AsyncIterator[AsyncSessionStore]:
    """A second store. To Redis, it looks like another process."""
    async with backend.store(lease_s=LEASE_S) as store:
        yield store


@pytest.fixture
def elsewhere(other_store: AsyncSessionStore) -> AsyncEnvironment:
    """The same environment, of the other store."""
    return other_store.environment("checkout", "staging")


def content(session: Session | None) -> tuple[object, ...] | None:
    """A session without lastSeenAt, which a view knows only as of the last change."""
    if session is None:
        return None
    names = [name for name in Session.__struct_fields__ if name not in ("last_seen_at", "details", "effect")]
    return tuple(getattr(session, name) for name in names)


def redis_ms(backend: Backend) -> int:
    seconds, microseconds = backend.raw.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def stored(backend: Backend, field: str, key: str = "ci-42") -> int:
    return int(backend.raw.hget(backend.key(key), field))


# Opening


async def test_an_open_view_is_fresh(staging: AsyncEnvironment) -> None:
    for number in range(150):
        await staging.put(f"ci-{number}", label=f"run {number}", wait=False)

    async with staging.view() as view:
        assert view.fresh
        assert {key: content(view.get(key)) for key in ("ci-0", "ci-149")} == {
            key: content(await staging.get(key)) for key in ("ci-0", "ci-149")
        }
        stats = view.stats
        assert (stats.state, stats.fresh, stats.sessions, stats.revision) == ("live", True, 150, 150)
        assert (stats.resyncs, stats.last_error) == (0, None)
        assert 0 < stats.lease_left_s <= LEASE_S
    assert not view.fresh


async def test_opens_on_an_empty_environment(staging: AsyncEnvironment) -> None:
    async with staging.view() as view:
        assert view.fresh
        assert view.get("ci-42") is None
        assert view.stats.sessions == 0


async def test_opened_without_waiting_it_serves_nothing_until_it_is_fresh(staging: AsyncEnvironment) -> None:
    await staging.put("ci-42")

    view = await staging.view(wait=False).open()
    try:
        # Meanwhile it may serve nothing, but a fresh view has every session.
        assert not view.fresh or view.get("ci-42") is not None
        await eventually(lambda: view.fresh)
        assert view.get("ci-42") is not None
    finally:
        await view.aclose()


async def test_refuses_an_environment_that_its_project_lacks(store: AsyncSessionStore) -> None:
    # Given a project with two registered environments
    await store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}, "qa": {}}})
    misspelt = store.environment("checkout", "stagin")

    # When a view opens on a third, then the error has their names, and no lease is left
    with pytest.raises(EnvironmentNotFoundError, match=r"no environment 'stagin'; it has registered qa, staging\.$"):
        await misspelt.view().open()
    assert await misspelt.views() == ()

    # And the registered one opens
    async with store.environment("checkout", "staging").view() as view:
        assert view.fresh


async def test_opened_without_waiting_it_waits_for_its_environment_to_be_registered(
    store: AsyncSessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a project that has registered another environment
    await store.project("checkout").apply_catalog({"project": "checkout", "environments": {"qa": {}}})
    staging = store.environment("checkout", "staging")

    # When a view opens without waiting, then the log names the registered one
    async with staging.view(wait=False) as view:
        # A thread logs it just after the view has become fresh.
        await eventually(lambda: "no environment 'staging'; it has registered qa." in caplog.text)

        # When its environment is registered, then it serves writes
        await store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}}})
        await staging.put("ci-42")
        assert view.get("ci-42") is not None
        async with staging.view():
            pass


async def test_warns_once_that_a_project_has_registered_no_environment(
    store: AsyncSessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    for environment in ("staging", "qa", "staging"):
        async with store.environment("checkout", environment).view():
            pass
    assert caplog.text.count("has registered no environment") == 1


@pytest.fixture(params=["sync", "asyncio"])
def nowhere(request: pytest.FixtureRequest, prefix: str) -> Iterator[Backend]:
    """An address without a listener."""
    require_redis_server()
    server = RedisServer()
    backend = Backend(request.param, server, prefix)
    yield backend
    backend.close()
    server.close()


async def test_opening_fails_in_time_without_a_server(nowhere: Backend) -> None:
    async with nowhere.store(deadline_s=0.2) as store:
        view = store.environment("checkout", "staging").view(timeout_s=0.5)

        with pytest.raises(StoreUnavailableError) as raised:
            await view.open()

        assert "The view of checkout/staging was not in touch within 0.5 s" in str(raised.value)
        assert "the connection to Redis broke" in str(raised.value)
        assert "try again, or open it with wait=False" in str(raised.value)
        assert not view.fresh


async def test_opening_reports_that_the_time_was_too_short(
    store: AsyncSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replica, "read_so_far", 12)
    monkeypatch.setattr(Replica, "poll", lambda replica: None)

    with pytest.raises(StoreUnavailableError, match=r"\(it had read 12 sessions by then\); give it a longer timeout_s"):
        await store.environment("checkout", "staging").view(timeout_s=0.05).open()


async def test_opens_without_a_server_if_it_does_not_wait(nowhere: Backend, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        nowhere.store(deadline_s=0.2) as store,
        store.environment("checkout", "staging").view(wait=False) as view,
    ):
        assert view.get("ci-42") is None
        await eventually(lambda: view.stats.last_error is not None)
        assert not view.fresh
        assert view.stats.state == "empty"
        # It logs this once, after any number of tries.
        assert len([record for record in caplog.records if "has never been in touch" in record.message]) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"on_stale": "sometimes"},
        {"touch_interval_s": 0},
        {"touch_interval_s": -1.0},
        {"touch_interval_s": "1"},
        {"timeout_s": -1},
        {"timeout_s": float("nan")},
    ],
)
async def test_rejects_invalid_options_before_it_connects(staging: AsyncEnvironment, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        staging.view(**options)


async def test_refuses_to_open_twice(staging: AsyncEnvironment) -> None:
    async with staging.view() as view:
        with pytest.raises(InvalidInputError, match="open already"):
            await view.open()
        assert view.fresh


# Keys


async def test_finds_a_session_by_the_key_in_any_form_of_a_header(staging: AsyncEnvironment) -> None:
    long = "k" * 300
    await staging.put("ci-42")
    await staging.put("grüße ☃")
    await staging.put(long)

    async with staging.view() as view:
        for look_up in (view.get, view.peek):
            for key in ("ci-42", "  ci-42", "ci-42\r\n", "\tci-42 \n", "ci\n-42"):
                assert look_up(key).session_key == "ci-42"  # type: ignore[union-attr]
            assert look_up("grüße ☃") is not None
            assert look_up(long).session_key == long[:200]  # type: ignore[union-attr]
            for key in ("", " ", "\n", "ci-43", "CI-42", "ci-42\0", "x" * 100_000, "\ud800"):
                assert look_up(key) is None


async def test_finds_no_session_for_an_invalid_key(staging: AsyncEnvironment) -> None:
    class Unhashable:
        def __hash__(self) -> int:
            raise RuntimeError("a surprise")

    await staging.put("ci-42")

    async with staging.view() as view:
        keys: list[Any] = [
            None,
            b"ci-42",
            bytearray(b"ci-42"),
            memoryview(bytearray(b"x")),
            7,
            1.5,
            [],
            {},
            Unhashable(),
        ]
        for key in keys:
            assert view.get(key) is None
            assert view.peek(key) is None


async def test_finds_a_session_by_a_raw_header(staging: AsyncEnvironment) -> None:
    await staging.put("grüße")

    utf_8, latin_1 = "grüße".encode(), "grüße".encode("latin-1")
    async with staging.view() as view:
        for raw in (utf_8, latin_1, utf_8.decode("latin-1"), b" " + utf_8 + b" "):
            assert view.get_by_header(raw) is not None
        others: list[Any] = [None, b"", b"  ", "ci-42", b"\xff" * 65_536, 7, [], bytearray(utf_8)]
        for other in others:
            assert view.get_by_header(other) is None
    with pytest.raises(StoreClosedError):
        view.get_by_header(utf_8)


async def test_a_look_up_by_header_keeps_the_session_alive(backend: Backend, staging: AsyncEnvironment) -> None:
    await staging.put("ci-42")
    backend.raw.hset(backend.key("ci-42"), "lastSeenAt", 1_000_000_000_000)

    async with staging.view(touch_interval_s=0.05) as view:
        assert view.get_by_header(b"ci-42") is not None

        await eventually(lambda: stored(backend, "lastSeenAt") > 1_000_000_000_000)


async def test_a_hit_equals_the_session_in_redis(staging: AsyncEnvironment) -> None:
    await staging.put(
        "ci-42", label="a", scenario="scn_a", overrides=["ovr_b", "ovr_a"], global_delay_ms=5, global_delay_max_ms=7
    )

    async with staging.view() as view:
        hit, read = view.get("ci-42"), await staging.get("ci-42")
        assert hit is not None
        assert read is not None
        assert content(hit) == content(read)
        assert hit == read
        assert read == hit
        assert hash(hit) == hash(read)
        assert hit.to_json() == read.to_json()
        assert repr(hit) == repr(msgspec.structs.replace(read, details=None))
        assert 5 <= hit.delay_ms() <= 7


# Changes


async def test_follows_each_kind_of_change(staging: AsyncEnvironment) -> None:
    async with staging.view() as view:

        async def check() -> None:
            assert content(view.get("ci-42")) == content(await staging.get("ci-42"))

        await staging.put("ci-42", label="a", overrides=["ovr_a"])
        await check()
        await staging.put("ci-42", scenario="scn_a", global_delay_ms=5)
        await check()
        await staging.activate("ci-42", "ovr_b")
        await check()
        await staging.deactivate("ci-42", "ovr_a")
        await check()
        await staging.reset("ci-42")
        await check()
        await staging.delete("ci-42")
        assert view.get("ci-42") is None
        await staging.put("ci-42", label="again")
        await check()


async def test_every_view_serves_a_write_that_has_returned(
    staging: AsyncEnvironment, elsewhere: AsyncEnvironment
) -> None:
    # Given views in two stores, one of them strict, and writers in each store
    async with staging.view() as first, staging.view(on_stale="raise") as second, elsewhere.view() as third:
        for number in range(200):
            writer = (staging, elsewhere)[number % 2]
            key = f"ci-{number % 7}"

            # When a write returns
            if number % 5 == 4:
                effect = (await writer.delete(key)).effect
                expected = None
            else:
                session = await writer.put(key, label=str(number))
                effect, expected = session.effect, str(number)

            # Then every view serves it at once
            for view in (first, second, third):
                found = view.get(key)
                assert (None if found is None else found.label) == expected
            # Views of one store share one lease.
            assert effect is not None
            assert (effect.confirmed, effect.expired) == (2, 0)


async def test_a_write_counts_the_reports_that_it_asks_for(
    staging: AsyncEnvironment, elsewhere: AsyncEnvironment
) -> None:
    async with staging.view(), staging.view(), elsewhere.view():
        for number in range(20):
            session = await staging.put("ci-42", label=str(number), views=2)
            assert session.effect is not None
            assert session.effect.confirmed == 2
            # A repeated one, too
            assert (await elsewhere.put("ci-42", label=str(number), views=2)).revision == session.revision
        deletion = await staging.delete("ci-42", views=2)
        assert deletion.effect is not None
        assert deletion.effect.confirmed == 2

        # Views of one store hold one lease, which counts once
        with pytest.raises(TooFewViewsError) as caught:
            await staging.put("ci-42", views=3)
        assert caught.value.confirmed == 2


async def test_a_view_that_has_just_joined_is_given_the_time_to_report(
    staging: AsyncEnvironment, elsewhere: AsyncEnvironment, backend: Backend
) -> None:
    view: Any
    async with elsewhere.view() as view:
        session = await staging.put("ci-42", label="x", views=1)
        # Given a lease that no writer waits for, since its view joined later, with less than the view has applied since
        keys = f"{backend.prefix}:{{checkout}}:staging"
        [lease_id] = backend.raw.zrange(f"{keys}:leases", 0, -1)
        backend.raw.hset(f"{keys}:views", f"{lease_id}:applied", 0)
        view._follower.lease._recorded = None

        # When a write needs its report, then it waits for the next renewal
        assert (await staging.put("ci-42", label="x", views=1)).revision == session.revision


async def test_a_write_that_does_not_wait_is_served_soon(
    staging: AsyncEnvironment, elsewhere: AsyncEnvironment
) -> None:
    async with elsewhere.view() as view:
        await staging.put("ci-42", wait=False)

        await eventually(lambda: view.get("ci-42"))


async def test_environments_share_a_connection_and_nothing_else(store: AsyncSessionStore) -> None:
    staging, production = store.environment("checkout", "staging"), store.environment("checkout", "production")
    search = store.environment("search", "staging")
    async with staging.view() as first, production.view() as second, search.view() as third:
        await staging.put("ci-42", label="staging")
        await production.put("ci-42", label="production")
        await search.put("other")

        labels = [getattr(view.get("ci-42"), "label", None) for view in (first, second, third)]
        assert labels == ["staging", "production", None]
        assert third.get("other") is not None


async def test_follows_the_catalog(store: AsyncSessionStore) -> None:
    project = store.project("checkout")
    await project.apply_catalog(catalog("ovr_a"))
    staging = store.environment("checkout", "staging")

    async with staging.view() as view:
        assert view.catalog == await staging.catalog()
        assert view.catalog is not None

        await project.apply_catalog(catalog("ovr_a", "ovr_b"))

        assert [mock.id for mock in view.catalog.mocks] == ["ovr_a", "ovr_b"]


def catalog(*mocks: str) -> dict[str, Any]:
    return {
        "project": "checkout",
        "environments": {"staging": {"mocks": [{"id": mock, "name": mock} for mock in mocks]}},
    }


# Expiry


async def test_never_serves_a_session_past_its_expiry(backend: Backend, staging: AsyncEnvironment) -> None:
    # Given a session that expires soon, and one that does not
    await staging.put("ci-42")
    await staging.put("stays")
    expires_at = redis_ms(backend) + 400
    backend.raw.hset(backend.key("ci-42"), "expiresAt", expires_at)

    async with staging.view() as view:
        assert view.peek("ci-42") is not None
        told: list[tuple[str, Session | None]] = []
        view.subscribe(lambda key, session: told.append((key, session)))

        # When the first is looked up until it is missing
        served_at = 0
        while True:
            before = redis_ms(backend)
            if view.peek("ci-42") is None and view.get("ci-42") is None:
                break
            served_at = before

        # Then it was served only before its expiry, and callbacks were told
        assert served_at < expires_at
        await eventually(lambda: told == [("ci-42", None)])
        assert view.stats.sessions == 1
        assert view.get("stays") is not None


async def test_another_proxys_touch_keeps_a_session_alive(
    backend: Backend, staging: AsyncEnvironment, elsewhere: AsyncEnvironment
) -> None:
    # Given a session that expires soon
    await staging.put("ci-42")
    expires_at = redis_ms(backend) + 700
    backend.raw.hset(backend.key("ci-42"), "expiresAt", expires_at)

    async with staging.view() as view:
        assert view.peek("ci-42") is not None

        # When another proxy uses it
        assert await elsewhere.touch({"ci-42": redis_ms(backend)}) == 1
        await eventually(lambda: view.peek("ci-42").expires_at > expires_at)  # type: ignore[union-attr]

        # Then the view still serves it
        while redis_ms(backend) < expires_at + 20:
            assert view.peek("ci-42") is not None
        assert content(view.get("ci-42")) == content(await staging.get("ci-42"))


# Touches


async def test_a_look_up_touches_a_session_and_a_peek_does_not(backend: Backend, staging: AsyncEnvironment) -> None:
    # Given two sessions that were last seen long ago
    for key in ("ci-42", "peeked"):
        await staging.put(key)
        backend.raw.hset(backend.key(key), "lastSeenAt", 1_000_000_000_000)

    async with staging.view(touch_interval_s=0.05) as view:
        before = redis_ms(backend)
        assert view.peek("peeked") is not None
        assert view.get(" ci-42 ") is not None

        await eventually(lambda: stored(backend, "lastSeenAt") >= before)
        assert stored(backend, "lastSeenAt") <= redis_ms(backend)
    assert stored(backend, "lastSeenAt", "peeked") == 1_000_000_000_000


async def test_reports_look_ups_in_batches(backend: Backend) -> None:
    scripts: list[str] = []

    def observe(script: str, seconds: float, error: object) -> None:
        scripts.append(script)

    async with backend.store(lease_s=LEASE_S, observe=observe) as store:
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42")
        async with staging.view(touch_interval_s=0.2) as view:
            scripts.clear()
            for _ in range(20_000):
                view.get("ci-42")
            assert len(scripts) < 100


async def test_closing_reports_the_last_look_ups(backend: Backend, staging: AsyncEnvironment) -> None:
    # Given more look-ups than one batch holds, and a report that is not due yet
    keys = [f"ci-{number}" for number in range(TOUCH_BATCH + 50)]
    for key in keys:
        await staging.put(key, wait=False)
        backend.raw.hset(backend.key(key), "lastSeenAt", 1_000_000_000_000)

    async with staging.view(touch_interval_s=3600) as view:
        for key in keys:
            assert view.get(key) is not None

    assert all(stored(backend, "lastSeenAt", key) > 1_000_000_000_000 for key in keys)


async def test_retries_a_failed_report(
    backend: Backend, staging: AsyncEnvironment, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a Redis that refuses a touch
    await staging.put("ci-42")
    backend.raw.hset(backend.key("ci-42"), "lastSeenAt", 1_000_000_000_000)
    index = f"{backend.prefix}:{{checkout}}:staging:index"
    async with staging.view(touch_interval_s=0.05) as view:
        backend.raw.rename(index, f"{index}:aside")
        backend.raw.set(index, "not an index")

        # When a session is looked up
        assert view.get("ci-42") is not None
        await eventually(lambda: "can't record look-ups" in caplog.text)
        assert stored(backend, "lastSeenAt") == 1_000_000_000_000

        # Then the view touches it when Redis accepts writes again
        backend.raw.rename(f"{index}:aside", index)
        await eventually(lambda: stored(backend, "lastSeenAt") > 1_000_000_000_000)
    assert caplog.text.count("can't record look-ups") == 1


# Callbacks


async def test_calls_back_after_it_has_applied_a_change(staging: AsyncEnvironment) -> None:
    await staging.put("there")
    told: list[tuple[str, str | None]] = []
    async with staging.view() as view:

        def callback(key: str, session: Session | None) -> None:
            assert view.peek(key) is session
            told.append((key, None if session is None else session.label))

        end = view.subscribe(callback)
        await staging.put("ci-42", label="a")
        await staging.put("ci-42", label="b")
        await staging.put("ci-42", label="b")  # changes nothing
        await staging.delete("ci-42")
        assert told == [("ci-42", "a"), ("ci-42", "b"), ("ci-42", None)]

        end()
        end()
        await staging.put("ci-42", label="c")
        assert len(told) == 3


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, SystemExit])
async def test_logs_the_error_of_a_callback_and_goes_on(
    kind: type[BaseException], staging: AsyncEnvironment, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def fails(key: str, session: Session | None) -> None:
        raise kind("a bug in a callback")

    async with staging.view() as view:
        view.subscribe(fails)
        view.subscribe(lambda key, session: told.append(key))

        await staging.put("ci-42")

        assert view.get("ci-42") is not None
        assert told == ["ci-42"]
        assert view.stats.resyncs == 0
    assert "a bug in a callback" in caplog.text


# Sharing


async def test_views_of_one_store_share_a_subscription_and_the_sessions(
    backend: Backend, store: AsyncSessionStore, staging: AsyncEnvironment
) -> None:
    await staging.put("ci-42")
    production = store.environment("checkout", "production")
    channel = f"{backend.prefix}:{{checkout}}:staging:changes"
    async with staging.view() as first, staging.view() as second, production.view():
        assert first.get("ci-42") is second.get("ci-42")
        with backend.shard() as raw:
            assert dict(raw.pubsub_shardnumsub(channel)) in ({channel: 1}, {channel.encode(): 1})
            if backend.real:
                name = f"{backend.prefix}:"
                subscribed = [client for client in raw.client_list() if int(client["ssub"]) > 0]
                channels = [channel for channel in raw.pubsub_shardchannels(f"{name}*") if channel.endswith(":changes")]
                assert len(channels) == 2
                assert len(subscribed) == 1

        # When one closes, the other continues.
        await first.aclose()
        await staging.put("ci-42", label="new")
        assert second.get("ci-42").label == "new"  # type: ignore[union-attr]


async def test_a_closed_view_delays_no_write(staging: AsyncEnvironment, elsewhere: AsyncEnvironment) -> None:
    async with elsewhere.view():
        session = await staging.put("ci-42", label="a")
        assert session.effect is not None
        assert session.effect.confirmed == 1

    session = await staging.put("ci-42", label="b")

    assert session.effect is not None
    assert (session.effect.confirmed, session.effect.expired) == (0, 0)
    assert await staging.views() == ()


async def test_a_view_names_its_host_process_and_version(staging: AsyncEnvironment) -> None:
    async with staging.view():
        (view,) = await staging.views()

    assert (view.host, view.pid, view.version) == (socket.gethostname(), os.getpid(), __version__)


# Without Redis


@pytest.fixture(params=["sync", "asyncio"])
def own_backend(request: pytest.FixtureRequest, prefix: str, own_redis: RedisServer) -> Iterator[Backend]:
    backend = Backend(request.param, own_redis, prefix)
    yield backend
    backend.close()


async def test_without_redis_a_view_serves_its_sessions_or_raises(
    own_backend: Backend, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with own_backend.store(lease_s=0.5, deadline_s=0.5) as store:
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42")
        async with staging.view() as serving, staging.view(on_stale="raise") as strict:
            assert strict.get("ci-42") is not None

            # When Redis stops
            own_redis.kill()
            await eventually(lambda: not serving.fresh)

            # Then the first serves its sessions, and the strict one says why it refuses
            assert serving.get("ci-42") is not None
            with pytest.raises(StaleView, match="The view of checkout/staging can't prove that it is current"):
                strict.get("ci-42")
            with pytest.raises(StaleView):
                strict.peek("ci-42")
            with pytest.raises(StaleView):
                strict.get("no session")
            assert strict.get(None) is None
            await eventually(lambda: serving.stats.last_error)

            # When Redis comes back empty, then both follow it
            own_redis.start()
            await eventually(lambda: serving.fresh and strict.fresh)
            assert serving.get("ci-42") is None
            assert strict.get("ci-42") is None
            await staging.put("ci-42")
            assert strict.get("ci-42") is not None
    said = [record.message for record in caplog.records if record.name == "sessionstore"]
    assert [text.split(":")[0].split(",")[0] for text in said] == [
        "The view of checkout/staging is in touch",
        "Project 'checkout' has registered no environment",
        "The view of checkout/staging is out of touch and serves what it has",
        "The view of checkout/staging is in touch",
    ]


@pytest.mark.parametrize("backend", ["sync-redis", "asyncio-redis"], indirect=True)
async def test_databases_of_one_server_are_separate(backend: Backend) -> None:
    assert isinstance(backend.server, RedisServer)
    address = backend.server.url.rpartition("/")[0]
    async with backend.store_at(f"{address}/1", lease_s=2.0) as one, backend.store_at(f"{address}/2") as two:
        here, there = (store.environment("checkout", "staging") for store in (one, two))
        told: list[tuple[str, Session | None]] = []
        async with here.view() as view, there.view() as other:
            view.subscribe(lambda key, session: told.append((key, session)))

            # When each database is written, then each view shows its own
            await there.put("ci-42", label="there")
            assert other.get("ci-42").label == "there"  # type: ignore[union-attr]
            assert view.get("ci-42") is None
            written = await here.put("ci-42", label="here")
            assert written.effect.confirmed == 1  # type: ignore[union-attr]
            assert view.get("ci-42") == written
            assert other.get("ci-42").label == "there"  # type: ignore[union-attr]
            assert told == [("ci-42", written)]
            assert view.stats.resyncs == other.stats.resyncs == 0
