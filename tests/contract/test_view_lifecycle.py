"""The life of a view: after any end, nothing hangs or leaks, and no writer waits for it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from sessionstore import (
    AsyncEnvironment,
    AsyncSessionStore,
    Environment,
    NotEffectiveError,
    Session,
    SessionStore,
    StoreClosedError,
    StoreUnavailableError,
)
from sessionstore.protocol import calls

from ..support.adapter import Backend
from ..support.polling import PATIENCE_S, eventually
from ..support.redis_server import RedisServer

LEASE_S = 2.0


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[AsyncSessionStore]:
    async with backend.store(lease_s=LEASE_S) as store:
        yield store


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """Check that no thread is left. Some tests check tasks and connections too."""
    before = set(threading.enumerate())
    yield
    assert own_threads() - before == set()


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("sessionstore")}


def own_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("sessionstore")]


async def leases(staging: AsyncEnvironment) -> int:
    return len(await staging.views())


# Closing


async def test_closing_leaves_no_task_connection_or_lease(backend: Backend, nothing_leaks: None) -> None:
    before = connections(backend)
    async with backend.store(lease_s=LEASE_S) as store:
        staging = store.environment("checkout", "staging")
        async with staging.view() as view, store.environment("checkout", "production").view():
            await staging.put("ci-42")
            assert view.get("ci-42") is not None
        assert own_threads() or own_tasks()
    assert own_threads() == set()
    assert own_tasks() == []
    await eventually(lambda: connections(backend) <= before)


def connections(backend: Backend) -> int:
    """The number of connections to Redis. Tests that share it run one after the other."""
    return len(backend.raw.client_list()) if backend.real else 0


async def test_closing_twice_succeeds(staging: AsyncEnvironment) -> None:
    view = await staging.view().open()
    await view.aclose()
    await view.aclose()
    async with staging.view() as other:
        await other.aclose()


async def test_a_closed_view_refuses_look_ups(staging: AsyncEnvironment) -> None:
    await staging.put("ci-42")
    async with staging.view() as open_view:
        view = await staging.view().open()
        assert view.get("ci-42") is not None
        get = view.get
        await view.aclose()

        # Even if another view of the environment is open, or the caller kept the method.
        check_unusable(view, "This view is closed; open another.")
        with pytest.raises(StoreClosedError):
            get("ci-42")
        assert open_view.get("ci-42") is not None


async def test_an_unopened_view_refuses_look_ups(staging: AsyncEnvironment) -> None:
    view = staging.view()

    check_unusable(view, "This view is not open; use it as a context manager, or call open() first.")
    await view.aclose()


def check_unusable(view: Any, why: str) -> None:
    assert not view.fresh
    uses: list[Callable[[], object]] = [
        lambda: view.get("ci-42"),
        lambda: view.get(None),
        lambda: view.peek("ci-42"),
        lambda: view.stats,
        lambda: view.catalog,
        lambda: view.subscribe(lambda key, session: None),
    ]
    for use in uses:
        with pytest.raises(StoreClosedError) as raised:
            use()
        assert str(raised.value) == why


async def test_a_view_can_be_opened_again(staging: AsyncEnvironment) -> None:
    view = staging.view()
    for number in range(3):
        async with view:
            await staging.put("ci-42", label=str(number))
            assert view.get("ci-42").label == str(number)  # type: ignore[union-attr]


async def test_closing_a_store_closes_its_views(backend: Backend, nothing_leaks: None) -> None:
    store = backend.store(lease_s=LEASE_S)
    staging = store.environment("checkout", "staging")
    await staging.put("ci-42")
    view = await staging.view().open()
    assert view.get("ci-42") is not None

    await store.aclose()

    check_unusable(view, "The store of this view is closed; open another.")
    await view.aclose()
    with pytest.raises(StoreClosedError):
        await staging.view().open()
    assert own_tasks() == []
    async with backend.store(lease_s=LEASE_S) as other:
        assert await leases(other.environment("checkout", "staging")) == 0


async def test_closing_a_store_fails_a_waiting_write(backend: Backend, nothing_leaks: None) -> None:
    # Given a lease whose view never acknowledges a write
    before = connections(backend)
    async with backend.store(lease_s=30.0) as other:
        staging = other.environment("checkout", "staging")
        await staging.put("ci-42", wait=False)
        head = await staging.get("ci-42")
        assert head is not None
        async with staging.view() as view:
            keys = view._follower.keyspace
        join = calls.join(keys, "mute", 30_000, "{}", 0, "")
        backend.raw.eval(join.script.text, len(join.keys), *join.keys, *join.args)

        # When a store is closed while one of its writes waits
        store = backend.store(lease_s=30.0)
        writing = asyncio.create_task(put(backend, store))
        await eventually(lambda: store._runner.route_of(keys).driver.subscriptions.wanted)
        await store.aclose()

        # Then the write reports its commit, and no connection of the store is left
        with pytest.raises(NotEffectiveError, match=r"was committed as revision 2.*This store is closed"):
            await writing
    await eventually(lambda: connections(backend) <= before)


async def put(backend: Backend, store: AsyncSessionStore) -> Session:
    """Write in a thread, so that a store for threads does not block the event loop."""
    staging = store.environment("checkout", "staging")
    if backend.driver == "asyncio":
        return await staging.put("ci-42", label="new")
    return await asyncio.to_thread(lambda: asyncio.run(as_coroutine(staging.put("ci-42", label="new"))))


async def as_coroutine(value: Awaitable[Session]) -> Session:
    return await value


async def test_an_exception_in_the_body_closes_the_view(staging: AsyncEnvironment) -> None:
    with pytest.raises(ZeroDivisionError):
        async with staging.view() as view:
            raise ZeroDivisionError
    with pytest.raises(StoreClosedError):
        view.get("ci-42")
    assert await leases(staging) == 0


async def test_closing_a_store_ends_the_opening_of_a_view(nowhere: SlowServer) -> None:
    # Given a view that waits for a server that never answers
    async with nowhere.async_store() as store:
        opening = asyncio.create_task(store.environment("checkout", "staging").view(timeout_s=60).open())
        await eventually(lambda: nowhere.connections)

        await store.aclose()

        with pytest.raises((StoreClosedError, StoreUnavailableError)):
            await asyncio.wait_for(opening, PATIENCE_S)
    assert own_tasks() == []


class SlowServer:
    """A server that accepts connections and never answers."""

    def __init__(self) -> None:
        self.connections = 0
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.read(65536):
                pass
        finally:
            writer.close()

    def async_store(self) -> AsyncSessionStore:
        assert self.server is not None
        return AsyncSessionStore.from_url(f"redis://127.0.0.1:{self.server.sockets[0].getsockname()[1]}")


@pytest.fixture
async def nowhere() -> AsyncIterator[SlowServer]:
    server = SlowServer()
    await server.start()
    yield server
    assert server.server is not None
    server.server.close()


# asyncio


async def test_cancelling_an_open_leaves_nothing(nowhere: SlowServer) -> None:
    async with nowhere.async_store() as store:
        view = store.environment("checkout", "staging").view(timeout_s=60)
        opening = asyncio.create_task(view.open())
        await eventually(lambda: nowhere.connections)

        opening.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(opening, PATIENCE_S)
        with pytest.raises(StoreClosedError):
            view.get("ci-42")
    assert own_tasks() == []


async def test_cancelling_an_open_at_any_step_leaves_no_lease(shared_redis: RedisServer, prefix: str) -> None:
    # Given a view whose open is cancelled one step of the event loop later each time
    async with AsyncSessionStore.from_url(shared_redis.url, prefix=prefix, lease_s=LEASE_S) as store:
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42")
        steps = 0
        while True:
            steps += 1
            opening = asyncio.create_task(staging.view().open())
            for _ in range(steps):
                await asyncio.sleep(0)
            if opening.done():
                break
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            assert await leases(staging) == 0
        await opening.result().aclose()
    assert own_tasks() == []


async def test_a_store_belongs_to_its_event_loop(shared_redis: RedisServer, prefix: str) -> None:
    async with AsyncSessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        staging = store.environment("checkout", "staging")
        async with staging.view() as view:

            async def elsewhere() -> None:
                assert view.get("ci-42") is None  # look-ups work in every thread and on every loop
                with pytest.raises(StoreClosedError, match="another event loop"):
                    await staging.view().open()

            await asyncio.to_thread(asyncio.run, elsewhere())


ENDINGS = {
    "asyncio.run ends with an open view": """
        async def main():
            store = AsyncSessionStore.from_url(url, prefix=prefix)
            view = await store.environment("checkout", "staging").view().open()
            assert view.get("ci-42") is not None
            return view
        view = asyncio.run(main())
        assert not view.fresh
        try:
            view.get("ci-42")
        except StoreClosedError:
            print("closed")
        """,
    "asyncio.run ends by an exception": """
        async def main():
            store = AsyncSessionStore.from_url(url, prefix=prefix)
            async with store.environment("checkout", "staging").view():
                raise ZeroDivisionError
        try:
            asyncio.run(main())
        except ZeroDivisionError:
            print("closed")
        """,
    "a task with a view is cancelled by the end of asyncio.run": """
        async def use(store, opened):
            async with store.environment("checkout", "staging").view():
                opened.set()
                await asyncio.sleep(3600)
        async def main():
            store = AsyncSessionStore.from_url(url, prefix=prefix)
            opened = asyncio.Event()
            global task
            task = asyncio.create_task(use(store, opened))
            await opened.wait()
        asyncio.run(main())
        print("closed" if task.cancelled() else task)
        """,
    "the interpreter exits with a thread view open": """
        store = SessionStore.from_url(url, prefix=prefix)
        view = store.environment("checkout", "staging").view().open()
        assert view.get("ci-42") is not None
        print("closed")
        """,
    "the interpreter exits with a finalizer of its own": """
        import weakref
        class Thing: pass
        thing = Thing()
        weakref.finalize(thing, print, end="")
        store = SessionStore.from_url(url, prefix=prefix)
        view = store.environment("checkout", "staging").view().open()
        print("closed")
        """,
    "the main thread ends while another one uses the view": """
        store = SessionStore.from_url(url, prefix=prefix)
        view = store.environment("checkout", "staging").view().open()
        def use():
            try:
                while True:
                    view.get("ci-42")
            except StoreClosedError:
                pass
        threading.Thread(target=use, daemon=True).start()
        print("closed")
        """,
    "sys.exit within the view": """
        with SessionStore.from_url(url, prefix=prefix) as store:
            with store.environment("checkout", "staging").view():
                print("closed")
                sys.exit(0)
        """,
    "the store and its view are dropped": """
        def use():
            store = SessionStore.from_url(url, prefix=prefix)
            store.environment("checkout", "staging").view().open()
        use()
        gc.collect()
        print("closed")
        """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_exits_at_once_and_silently_and_gives_up_its_lease(
    ending: str, shared_redis: RedisServer, prefix: str
) -> None:
    with SessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        staging = store.environment("checkout", "staging")
        # An unregistered environment causes a warning.
        store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}}})
        staging.put("ci-42", wait=False)

        result = run_script(ENDINGS[ending], shared_redis.url, prefix)

        assert (result.stdout, result.stderr, result.returncode) == ("closed\n", "", 0)
        assert staging.views() == ()
        effect = staging.put("ci-42", label="new").effect
        assert effect is not None
        assert effect.expired == 0


def test_a_killed_process_delays_a_write_by_one_lease_at_most(shared_redis: RedisServer, prefix: str) -> None:
    script = """
        store = SessionStore.from_url(url, prefix=prefix, lease_s=0.5)
        store.environment("checkout", "staging").view().open()
        print("open", flush=True)
        os.kill(os.getpid(), 9)
        """
    with SessionStore.from_url(shared_redis.url, prefix=prefix, lease_s=0.5) as store:
        staging = store.environment("checkout", "staging")
        staging.put("ci-42", wait=False)
        assert run_script(script, shared_redis.url, prefix).returncode == -9

        effect = staging.put("ci-42", label="new").effect

        assert effect is not None
        assert effect.confirmed == 0


def run_script(script: str, url: str, prefix: str) -> subprocess.CompletedProcess[str]:
    head = """
        import asyncio, gc, logging, os, sys, threading
        from sessionstore import AsyncSessionStore, SessionStore, StoreClosedError
        # In debug mode, asyncio reports slow callbacks.
        logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing"))
        url, prefix = sys.argv[1:]
        """
    program = textwrap.dedent(head) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program, url, prefix],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# Fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_view_refuses_look_ups_after_a_fork(shared_redis: RedisServer, prefix: str) -> None:
    script = """
        store = SessionStore.from_url(url, prefix=prefix)
        store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}}})
        staging = store.environment("checkout", "staging")
        staging.put("ci-42")
        with staging.view() as view:
            for number in range(12):
                # Changes continue, so that some forks happen while a lock is held.
                staging.put("busy", label=str(number), wait=False)
                child = os.fork()
                if child == 0:
                    try:
                        view.get("ci-42")
                    except StoreClosedError as exc:
                        said = str(exc)
                    assert said == "This view was opened before a fork; open one in this process, after the fork."
                    assert not view.fresh
                    with staging.view() as own:
                        assert own.get("ci-42") is not None
                        # Two views are open: this one and the parent's.
                        assert staging.put(f"child-{number}").effect.confirmed >= 2
                        assert own.get(f"child-{number}") is not None
                    view.close()
                    sys.exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            # The parent's view continues.
            staging.put("ci-42", label="after")
            assert view.get("ci-42").label == "after"
            assert view.stats.resyncs == 0, view.stats
        store.close()
        print("done")
        """

    result = run_script(script, shared_redis.url, prefix)

    assert (result.stderr, result.stdout, result.returncode) == ("", "done\n", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.parametrize("lock", ["_lock", "_fork_lock"])
def test_a_forked_process_waits_for_no_lock_of_the_parent(shared_redis: RedisServer, prefix: str, lock: str) -> None:
    script = f"""
        store = SessionStore.from_url(url, prefix=prefix)
        staging = store.environment("checkout", "staging")
        staging.put("ci-42")
        # A thread of the parent takes a connection during the fork
        with store._runner.pool.{lock}:
            child = None

            def fork():
                global child
                child = os.fork()
                if child == 0:
                    assert staging.get("ci-42") is not None
                    os._exit(0)

            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store.close()
        print("done")
        """

    result = run_script(script, shared_redis.url, prefix)

    assert (result.stderr, result.stdout, result.returncode) == ("", "done\n", 0)


# Threads


@pytest.mark.parametrize("wait", [True, False])
def test_opening_a_view_while_its_store_closes_leaves_nothing(
    shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    with SessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        view = store.environment("checkout", "staging").view(wait=wait)
        start = store._runner.driver.start

        def start_and_be_closed() -> None:
            start()
            store.close()

        monkeypatch.setattr(store._runner.driver, "start", start_and_be_closed)
        with pytest.raises(StoreClosedError):
            view.open()
        with pytest.raises(StoreClosedError):
            view.get("ci-42")


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Switch threads often: tests see more interleavings, and threads with I/O wait less for busy ones."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


def test_look_ups_in_many_threads_while_changes_arrive(
    shared_redis: RedisServer, prefix: str, quick_switches: None
) -> None:
    # Given eight threads that look up without pause, a strict view, and another view
    keys = [f"ci-{number}" for number in range(20)]
    with SessionStore.from_url(shared_redis.url, prefix=prefix, lease_s=LEASE_S) as store:
        staging = store.environment("checkout", "staging")
        for key in keys:
            staging.put(key, label="0")
        with staging.view(touch_interval_s=0.02) as view:
            committed = dict.fromkeys(keys, 0)
            ended = threading.Event()
            wrong: list[str] = []

            def look_up() -> None:
                seen = dict.fromkeys(keys, 0)
                while not ended.is_set():
                    for key in keys:
                        floor = committed[key]
                        session = view.get(key)
                        label = -1 if session is None or session.label is None else int(session.label)
                        # Each look-up shows every write that returned before it began, and no view goes back.
                        if label < floor or label < seen[key]:
                            wrong.append(f"{key}: {label}, after {floor} was committed and {seen[key]} was seen")
                            return
                        seen[key] = label

            threads = [threading.Thread(target=look_up) for _ in range(8)]
            for thread in threads:
                thread.start()
            try:
                for number in range(1, 100):
                    key = keys[number % len(keys)]
                    staging.put(key, label=str(number))
                    committed[key] = number
            finally:
                ended.set()
                for thread in threads:
                    thread.join()
            assert wrong == []
            await_touches(staging, view, keys)
    assert own_threads() == set()


def await_touches(staging: Environment, view: Any, keys: list[str]) -> None:
    """Check that every looked-up session has been reported, or has a touch that is due."""
    deadline = time.monotonic() + PATIENCE_S
    while any(session.touched_at for session in view._sessions.values()):
        assert time.monotonic() < deadline, "sessions stay marked without a touch"
        time.sleep(0.01)
    assert not view._follower.touches


def test_views_opened_and_closed_in_many_threads(shared_redis: RedisServer, prefix: str) -> None:
    with SessionStore.from_url(shared_redis.url, prefix=prefix, lease_s=LEASE_S) as store:
        staging = store.environment("checkout", "staging")
        failures: list[BaseException] = []

        def use(name: str) -> None:
            try:
                for number in range(10):
                    with staging.view() as view:
                        staging.put(name, label=str(number))
                        session: Session | None = view.get(name)
                        assert session is not None
                        assert session.label == str(number)
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=use, args=(f"ci-{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert staging.views() == ()
        assert len(own_threads()) == 2
    gc.collect()
    assert own_threads() == set()
