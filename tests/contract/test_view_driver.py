"""Both drivers recover from unexpected errors, and sleep while idle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sessionstore import AsyncSessionStore
from sessionstore.protocol.calls import SNAPSHOT_BATCH
from sessionstore.replica.follower import FollowerRequest

from ..support.adapter import Backend
from ..support.polling import eventually


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[AsyncSessionStore]:
    async with backend.store(lease_s=2.0) as store:
        yield store


def fail_once(target: Any, name: str, *, after: bool = False) -> None:
    """Make the next call of a method fail, before or after it does its work."""
    method: Callable[..., Any] = getattr(target, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        setattr(target, name, method)
        if after:
            method(*args, **kwargs)
        raise LookupError("a bug")

    setattr(target, name, failing)


#: Each driver once: the server does not matter here.
DRIVERS = pytest.mark.parametrize("backend", ["sync-redis", "asyncio-redis"], indirect=True)


@DRIVERS
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["poll", "answered", "received", "commands_due"])
async def test_a_bug_is_logged_and_the_view_recovers(
    store: AsyncSessionStore, name: str, after: bool, caplog: pytest.LogCaptureFixture
) -> None:
    staging = store.environment("checkout", "staging")
    async with staging.view(touch_interval_s=0.05) as view:
        await staging.put("ci-42", label="a")

        # When a background call fails with an unexpected error
        fail_once(driver_of(store).subscriptions, name, after=after)
        view.get("ci-42")
        await eventually(lambda: "a bug" in caplog.text)

        # Then the error is logged, and the view becomes fresh again
        await eventually(lambda: view.fresh and view.stats.resyncs >= 1)
        await staging.put("ci-42", label="b")
        assert view.get("ci-42").label == "b"  # type: ignore[union-attr]
        assert any(record.exc_info and record.levelno == logging.ERROR for record in caplog.records)


@DRIVERS
async def test_does_not_reuse_a_connection_that_failed_to_send(backend: Backend, store: AsyncSessionStore) -> None:
    staging = store.environment("checkout", "staging")
    opened = record_opened(driver_of(store)._link, asynchronous=backend.driver == "asyncio")
    async with staging.view() as view:
        # Given redis-py, which disconnects after a failed send, and reconnects at the next use
        [connection] = opened
        if backend.driver == "sync":
            connection.disconnect()
        else:
            await connection.disconnect(nowait=True)

        # When the driver sees it, then the view subscribes again on another one, and writes reach it
        await eventually(lambda: view.stats.resyncs >= 1 and view.fresh)
        assert len(opened) > 1
        await staging.put("ci-42", label="b")
        assert view.get("ci-42").label == "b"  # type: ignore[union-attr]
    assert not connection.is_connected


def record_opened(link: Any, *, asynchronous: bool) -> list[Any]:
    """The list of the connections that a link opens for pub/sub from now on."""
    opened: list[Any] = []
    open_connection = link.open

    def recording_open(*args: Any, **options: Any) -> Any:
        opened.append(open_connection(*args, **options))
        return opened[-1]

    async def recording_open_on_a_loop(*args: Any, **options: Any) -> Any:
        connection = await open_connection(*args, **options)
        if options.get("for_calls") is False:
            opened.append(connection)
        return connection

    link.open = recording_open_on_a_loop if asynchronous else recording_open
    return opened


async def test_logs_the_error_of_an_observer_and_goes_on(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    def observe(script: str, seconds: float, error: Exception | None) -> None:
        raise LookupError("a bug in an observer")

    async with backend.store(lease_s=0.5, observe=observe) as store:
        staging = store.environment("checkout", "staging")
        async with staging.view() as view:
            assert (await staging.put("ci-42", label="a")).revision == 1
            assert view.fresh
            assert view.get("ci-42").label == "a"  # type: ignore[union-attr]
            assert view.stats.resyncs == 0
    assert "a bug in an observer" in caplog.text


@DRIVERS
async def test_an_idle_view_sleeps(store: AsyncSessionStore) -> None:
    async with store.environment("checkout", "staging").view():
        subscriptions = driver_of(store).subscriptions
        counts = dict.fromkeys(("poll", "commands_due"), 0)

        def counting(name: str) -> Callable[..., Any]:
            method = getattr(subscriptions, name)

            def counted(*args: Any) -> Any:
                counts[name] += 1
                return method(*args)

            return counted

        for name in counts:
            setattr(subscriptions, name, counting(name))
        begun = time.monotonic()
        await asyncio.sleep(1.0)
        seconds = time.monotonic() - begun

    # Each second has at most three renewals, a flush, and two heartbeats with answers. Each may wake the driver twice.
    assert counts["poll"] <= 20 * seconds + 10
    assert counts["commands_due"] <= 20 * seconds + 10


async def test_a_change_without_a_waiting_writer_wakes_no_task(store: AsyncSessionStore) -> None:
    staging = store.environment("checkout", "staging")
    await staging.put("ci-42")
    async with staging.view(touch_interval_s=3600) as view:
        # Given a counter of the driver's searches for due calls
        subscriptions = driver_of(store).subscriptions
        polls: list[float] = []
        poll = subscriptions.poll

        def poll_and_record(now: float) -> Any:
            polls.append(now)
            return poll(now)

        subscriptions.poll = poll_and_record

        # When many changes come, and the view has applied the last one
        for number in range(200):
            last = await staging.put("ci-42", label=str(number), wait=False)
        await eventually(lambda: view.get("ci-42") == last)

        # Then it searched less often than once for each change
        assert len(polls) < 50


def driver_of(store: AsyncSessionStore) -> Any:
    return store._runner.driver


@DRIVERS
async def test_asks_for_the_next_page_before_it_has_applied_the_last_one(store: AsyncSessionStore) -> None:
    # Given an environment of several pages
    staging = store.environment("checkout", "staging")
    keys = [f"ci-{number}" for number in range(3 * SNAPSHOT_BATCH)]
    await asyncio.gather(*(staging.put(key, wait=False) for key in keys))
    subscriptions = driver_of(store).subscriptions
    poll, answered = subscriptions.poll, subscriptions.answered
    unanswered: set[FollowerRequest] = set()
    most = 0

    def watched_poll(now: float) -> list[FollowerRequest]:
        nonlocal most
        requests: list[FollowerRequest] = poll(now)
        unanswered.update(request for request in requests if request.call.script.name == "snapshot")
        most = max(most, len(unanswered))
        return requests

    def watched_answered(request: FollowerRequest, reply: Any, now: float) -> None:
        unanswered.discard(request)
        answered(request, reply, now)

    subscriptions.poll, subscriptions.answered = watched_poll, watched_answered

    # When a view opens
    async with staging.view() as view:
        assert view.stats.sessions == len(keys)

    # Then Redis had a page to read while the one before was applied
    assert most == 2
