"""Calls of one asyncio store on one connection, on a real Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio
import uvloop

from sessionstore import AsyncEnvironment, AsyncSessionStore, StoreClosedError, StoreUnavailableError
from sessionstore.aio.pipeline import BATCH
from sessionstore.protocol import calls
from sessionstore.transport import redis_internals
from sessionstore.transport.pipeline import MAX_SENT

from ...support.polling import eventually
from ...support.redis_server import RedisServer
from ...support.relay import Relay
from ...support.stub_server import StubServer

#: Seconds of a deadline that a test lets pass. A busy machine answers in time.
DEADLINE_S = 1.0


def open_store(server: RedisServer, prefix: str, **options: Any) -> AsyncSessionStore:
    """A store whose connections have its prefix as the client's name."""
    options = {"prefix": prefix, "lease_s": 0.1, "deadline_s": 20, **options}
    return AsyncSessionStore.from_url(f"{server.url}?client_name={prefix}", **options)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands each write to Redis has."""
    sizes: list[int] = []
    write = redis_internals.write

    def record(connection: Any, commands: list[bytes]) -> None:
        sizes.append(len(commands))
        write(connection, commands)

    monkeypatch.setattr(redis_internals, "write", record)
    return sizes


async def fill(staging: AsyncEnvironment, count: int) -> list[str]:
    keys = [f"ci-{number}" for number in range(count)]
    await asyncio.gather(*(staging.put(key, label=key, wait=False) for key in keys))
    await staging.get(keys[0])  # from now on Redis knows this script, too
    return keys


async def labels(staging: AsyncEnvironment, keys: list[str]) -> list[str | None]:
    sessions = await asyncio.gather(*map(staging.get, keys))
    return [session.label for session in sessions if session is not None]


async def test_calls_that_are_ready_together_leave_together_on_one_connection(
    shared_redis: RedisServer, prefix: str, writes: list[int]
) -> None:
    async with open_store(shared_redis, prefix) as store:
        staging = store.environment("checkout", "staging")
        keys = await fill(staging, 2 * BATCH + 3)
        writes.clear()

        # Many leave in batches: Redis runs one while the tasks go on
        assert await labels(staging, keys) == keys
        assert writes == [BATCH, BATCH, 3]
        assert len(shared_redis.clients(prefix)) == 1


async def test_calls_that_are_ready_together_leave_in_one_write_on_a_new_connection(
    shared_redis: RedisServer, prefix: str, writes: list[int]
) -> None:
    async with open_store(shared_redis, prefix) as store:
        await asyncio.gather(*(store.ping() for _ in range(20)))

        assert writes[0] == 20


async def test_a_call_that_is_made_while_another_is_under_way_does_not_wait_for_it(
    shared_redis: RedisServer, prefix: str, writes: list[int]
) -> None:
    with Relay(shared_redis.port) as relay:
        async with AsyncSessionStore.from_url(relay.url, prefix=prefix, lease_s=0.1, deadline_s=20) as store:
            staging = store.environment("checkout", "staging")
            keys = await fill(staging, 2)
            writes.clear()

            # When the answer to one call is on its way
            relay.set(to_client="hold")
            first = asyncio.create_task(staging.get(keys[0]))
            await eventually(lambda: writes == [1])
            second = asyncio.create_task(staging.get(keys[1]))

            # Then the other one leaves
            await eventually(lambda: writes == [1, 1])
            relay.set()
            sessions = await asyncio.gather(first, second)
            assert [session.label for session in sessions if session is not None] == keys


async def test_more_calls_than_may_be_under_way(shared_redis: RedisServer, prefix: str, writes: list[int]) -> None:
    async with open_store(shared_redis, prefix) as store:
        staging = store.environment("checkout", "staging")
        keys = await fill(staging, 3 * MAX_SENT)
        writes.clear()

        assert await labels(staging, keys) == keys
        assert sum(writes) == len(keys)


async def test_idle_for_a_deadline_it_keeps_the_connection_and_no_task(shared_redis: RedisServer, prefix: str) -> None:
    async with open_store(shared_redis, prefix, deadline_s=DEADLINE_S) as store:
        await store.ping()
        driver: Any = store._runner.connections._pipeline
        connection = driver._connection
        assert driver._reader is not None

        await eventually(lambda: driver._reader is None)

        assert (driver._timer, driver._connection) == (None, connection)
        await store.ping()
        assert driver._connection is connection


async def test_a_connection_that_redis_ended_while_it_was_idle_is_made_anew(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with open_store(shared_redis, prefix) as store:
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42")
        driver: Any = store._runner.connections._pipeline
        for _ in range(3):
            shared_redis.kill_clients(prefix)
            await eventually(lambda: driver._connection is None)

            # Then a write does not notice
            await staging.put("ci-42")


async def test_the_end_of_an_idle_connection_that_nobody_has_read_yet(shared_redis: RedisServer, prefix: str) -> None:
    async with open_store(shared_redis, prefix) as store:
        staging = store.environment("checkout", "staging")
        await staging.put("ci-42")
        driver: Any = store._runner.connections._pipeline

        # When many calls are made in the turn of the event loop in which it ends
        calls = [asyncio.create_task(staging.put("ci-42", wait=False)) for _ in range(BATCH)]
        driver._connection._reader.feed_eof()

        # Then none of them notices
        await asyncio.gather(*calls)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.filterwarnings("error")
def test_the_end_of_a_connection_in_use_that_nobody_has_read_yet(
    own_redis: RedisServer, prefix: str, loop_factory: Callable[[], asyncio.AbstractEventLoop], caplog: Any
) -> None:
    """Then uvloop's transport raises when it is written to."""

    async def run() -> None:
        async with open_store(own_redis, prefix) as store:
            await store.ping()
            pipeline = store._runner.connections._pipeline
            own_redis.pause()
            ping = calls.ping()
            sent = pipeline.submit(ping)
            await asyncio.sleep(0)
            # When the connection ends between a call and its write
            late: list[asyncio.Future[Any]] = []
            asyncio.get_running_loop().call_soon(lambda: late.append(pipeline.submit(ping)))
            pipeline._connection._writer.transport.abort()
            own_redis.resume()

            # Then the call that was sent fails, and the other one is served
            assert isinstance(await sent, StoreUnavailableError)
            assert b"now" in await late[0]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
    assert not caplog.records


@pytest.mark.parametrize("idle", [False, True])
async def test_a_connection_with_a_reply_to_no_command_is_made_anew(
    shared_redis: RedisServer, prefix: str, idle: bool
) -> None:
    async with open_store(shared_redis, prefix, deadline_s=DEADLINE_S if idle else 20) as store:
        await store.ping()
        driver: Any = store._runner.connections._pipeline
        connection = driver._connection
        if idle:
            await eventually(lambda: driver._reader is None)

        redis_internals.write(connection, [b"ECHO unexpected\r\n"])
        await eventually(lambda: connection._reader is None or connection._reader._buffer)

        assert await store.environment("checkout", "staging").get("ci-42") is None
        assert driver._connection is not connection


async def test_a_call_that_redis_does_not_answer_fails_in_time_and_the_next_is_served(own_redis: RedisServer) -> None:
    async with AsyncSessionStore.from_url(own_redis.url, deadline_s=DEADLINE_S) as store:
        await store.ping()
        own_redis.pause()
        results = await asyncio.gather(*(store.ping() for _ in range(4)), return_exceptions=True)
        own_redis.resume()

        assert [type(result) for result in results] == [StoreUnavailableError] * 4
        await eventually_served(store)


async def test_without_redis_each_call_fails_and_later_ones_are_served(own_redis: RedisServer) -> None:
    async with AsyncSessionStore.from_url(own_redis.url, deadline_s=20) as store:
        own_redis.stop()
        for _ in range(3):
            results = await asyncio.gather(*(store.ping() for _ in range(4)), return_exceptions=True)
            assert [type(result) for result in results] == [StoreUnavailableError] * 4

        own_redis.start()
        await store.ping()


async def eventually_served(store: AsyncSessionStore) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                return await store.ping()
            except StoreUnavailableError:
                await asyncio.sleep(0)


@pytest.mark.parametrize("closing", [False, True])
async def test_a_cancellation_that_is_lost_ends_the_conversation(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, closing: bool
) -> None:
    """As `asyncio.wait_for` of Python 3.11 loses one if a reply comes at the same time; fakeredis reads with it."""
    async with AsyncSessionStore.from_url(own_redis.url, deadline_s=DEADLINE_S) as store:
        await store.ping()
        driver: Any = store._runner.connections._pipeline
        read_response = driver._connection.read_response

        async def forget(*args: Any, **kwargs: Any) -> Any:
            try:
                return await read_response(*args, **kwargs)
            except asyncio.CancelledError:
                return b"{}" if closing else await read_response(*args, **kwargs)

        # Given a connection that is read so, and a Redis that is silent
        monkeypatch.setattr(driver._connection, "read_response", forget)
        await store.ping()
        own_redis.pause()
        waiting = asyncio.gather(store.ping(), store.ping(), return_exceptions=True)
        if closing:
            await eventually(lambda: driver._pipeline.has_sent)
        else:
            assert [type(result) for result in await waiting] == [StoreUnavailableError] * 2

        # When it answers again, then calls are served; and closing the store does not hang either
        own_redis.resume()
        if not closing:
            await eventually_served(store)
    await waiting


@pytest.mark.parametrize("method", ["read_response", "connect"])
async def test_an_unexpected_error_fails_the_calls_under_way_and_is_logged(
    shared_redis: RedisServer,
    prefix: str,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_store(shared_redis, prefix) as store:
        staging = store.environment("checkout", "staging")
        keys = await fill(staging, 2)
        driver: Any = store._runner.connections._pipeline
        if method == "connect":
            shared_redis.kill_clients(prefix)
            await eventually(lambda: driver._connection is None)

        async def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("a flaw")

        with monkeypatch.context() as patch:
            patch.setattr(redis.asyncio.Connection, method, fail)
            results = await asyncio.gather(*map(staging.get, keys), return_exceptions=True)

        # Then the last one failed: the reply to the first one was being read already
        assert type(results[-1]) is StoreUnavailableError
        assert "a flaw" in caplog.text
        assert await labels(staging, keys) == keys


async def test_what_redis_py_makes_of_a_socket_that_timed_out_is_no_reply(
    shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(shared_redis, prefix) as store:

        async def read_response(*args: Any, **kwargs: Any) -> None:
            pass

        await store.ping()
        driver: Any = store._runner.connections._pipeline
        monkeypatch.setattr(driver._connection, "read_response", read_response)
        results = await asyncio.gather(store.ping(), store.ping(), return_exceptions=True)

        assert type(results[-1]) is StoreUnavailableError
        await store.ping()


async def test_a_call_that_is_connecting_while_the_store_closes_is_not_sent(
    shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a call that is connecting
    connecting = asyncio.Event()
    connect: Any = redis.asyncio.Connection.connect

    async def connect_and_linger(connection: Any) -> None:
        await connect(connection)
        connecting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(redis.asyncio.Connection, "connect", connect_and_linger)
    store = open_store(shared_redis, prefix)
    call = asyncio.create_task(store.environment("checkout", "staging").get("ci-42"))
    await connecting.wait()

    # When the store closes
    await store.aclose()

    # Then the call fails, no connection stays open, and none is made again
    with pytest.raises(StoreClosedError):
        await call
    await eventually(lambda: not shared_redis.clients(prefix))
    with pytest.raises(StoreClosedError):
        await store._runner.connections.execute(calls.ping())


async def test_a_refusal_that_redis_py_takes_for_the_end_of_the_connection_fails_its_call_only() -> None:
    answers = itertools.cycle([b"-LOADING Redis is loading the dataset in memory\r\n", b'$9\r\n{"now":1}\r\n'])
    with StubServer(answers) as stub:
        async with AsyncSessionStore.from_url(stub.url, deadline_s=20) as store:
            results = await asyncio.gather(*(store.ping() for _ in range(4)), return_exceptions=True)

    assert [type(result) for result in results] == [StoreUnavailableError, type(None)] * 2
    assert "still loading" in str(results[0])


async def test_what_waits_outlives_the_task_that_reads(shared_redis: RedisServer, prefix: str) -> None:
    async with open_store(shared_redis, prefix) as store:
        # Given a call under way, and one that is submitted while the end of the event loop cancels every task
        driver: Any = store._runner.connections._pipeline
        await store.ping()
        under_way = driver.submit(calls.ping())
        await asyncio.sleep(0)
        reader = driver._reader
        reader.cancel()
        waiting = driver.submit(calls.ping())

        assert isinstance(await under_way, StoreUnavailableError)
        assert b"now" in await waiting
        assert reader.cancelled()
        # And no task stays, which the end of the event loop would find
        await eventually(lambda: driver._reader is None, timeout_s=10)


def test_a_task_may_call_while_the_event_loop_ends(shared_redis: RedisServer, prefix: str) -> None:
    cleaned: list[bool] = []

    async def work(store: AsyncSessionStore) -> None:
        staging = store.environment("checkout", "staging")
        try:
            while True:
                await staging.put("ci-42", label="x", wait=False)
        finally:
            cleaned.append(bool(await staging.delete("ci-42", wait=False)))
            await store.aclose()

    async def main() -> None:
        store = open_store(shared_redis, prefix)
        tasks = [asyncio.create_task(work(store))]
        await store.ping()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not tasks[0].done()

    # When a loop ends, which cancels every task
    asyncio.run(main())

    assert cleaned == [True]
