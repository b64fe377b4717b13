"""A store whose Redis is down, refuses, hangs, forgets or lies raises our error, writes all or nothing, and recovers.

The deadlines are short. Because the machine may be busy, the tests assert only that a call ends long before a test
would time out.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from sessionstore import (
    AsyncEnvironment,
    CorruptDataError,
    OutcomeUnknownError,
    SessionStore,
    SessionStoreError,
    StoreUnavailableError,
)
from sessionstore.protocol.scripts import load_script, script_names

from ..support.adapter import Backend, Driver, open_at
from ..support.coverage import unmeasured
from ..support.redis_server import RedisServer
from ..support.relay import Relay
from ..support.stub_server import StubServer

ROOT = Path(__file__).parents[2]

DEADLINE_S = 0.4
#: Seconds, far above the deadline. A call that takes longer hangs.
ENDS_WITHIN_S = 10.0


@pytest.fixture
def backend(driver: Driver, own_redis: RedisServer, prefix: str) -> Iterator[Backend]:
    backend = Backend(driver, own_redis, prefix)
    yield backend
    backend.close()


open_store = partial(open_at, lease_s=0.1, deadline_s=DEADLINE_S)


def head_rev(backend: Backend) -> int:
    return int(backend.raw.hget(f"{backend.prefix}:{{checkout}}:staging:head", "rev") or 0)


WRITES: dict[str, Callable[[AsyncEnvironment], Awaitable[Any]]] = {
    "put": lambda staging: staging.put("ci-42", label="new"),
    "repeat": lambda staging: staging.put("ci-42", label="x"),
    "activate": lambda staging: staging.activate("ci-42", "ovr_new"),
    "deactivate": lambda staging: staging.deactivate("ci-42", "ovr_a"),
    "reset": lambda staging: staging.reset("ci-42"),
    "touch": lambda staging: staging.touch({"ci-42": 2**52}),
}
READS: dict[str, Callable[[AsyncEnvironment], Awaitable[Any]]] = {
    "get": lambda staging: staging.get("ci-42"),
    "list": lambda staging: staging.list(),
}
DELETE: dict[str, Callable[[AsyncEnvironment], Awaitable[Any]]] = {"delete": lambda staging: staging.delete("ci-42")}


async def fails(call: Awaitable[object], error: type[SessionStoreError] = StoreUnavailableError) -> SessionStoreError:
    """Assert that the call raises exactly this error, and soon."""
    started = time.monotonic()
    with pytest.raises(error) as caught:
        await call
    assert time.monotonic() - started < ENDS_WITHIN_S
    assert caught.type is error
    return caught.value


async def recovers(call: Callable[[], Awaitable[Any]]) -> Any:
    """Assert that the same store serves the call again, after a few tries: a connection may still break."""
    for _ in range(5):
        with contextlib.suppress(StoreUnavailableError):
            return await call()
    return await call()


class TestDown:
    async def test_every_call_fails_and_the_store_recovers(self, backend: Backend) -> None:
        async with backend.store(lease_s=0.1, deadline_s=DEADLINE_S) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-42")
            backend.server.stop()  # type: ignore[union-attr]

            for call in (READS | WRITES | DELETE).values():
                error = await fails(call(staging))
                assert "can't be reached; nothing was changed" in str(error)
                assert "127.0.0.1" not in str(error)
            with pytest.raises(StoreUnavailableError):
                await store.ping()

            backend.server.start()  # type: ignore[union-attr]
            assert (await recovers(lambda: staging.put("ci-42", label="x"))).label == "x"

    async def test_a_client_with_long_time_outs_does_not_slow_the_store(self, backend: Backend) -> None:
        client = backend.client(retry=_patient(backend.driver), socket_timeout=60, socket_connect_timeout=60)
        backend.server.stop()  # type: ignore[union-attr]
        async with backend.on_client(client, lease_s=0.1, deadline_s=DEADLINE_S) as store:
            await fails(store.environment("checkout", "staging").put("ci-42"))
        closing = client.close() if backend.driver == "sync" else await client.aclose()
        assert closing is None

    async def test_serves_again_after_a_restart(self, driver: Driver, prefix: str) -> None:
        with RedisServer(appendonly="yes", appendfsync="always") as server:
            backend = Backend(driver, server, prefix)
            async with backend.store(lease_s=0.1) as store:
                staging = store.environment("checkout", "staging")
                session = await staging.put("ci-42", label="x")
                server.kill()
                server.start()

                assert await recovers(lambda: staging.get("ci-42")) == session
                assert (await staging.put("ci-42", label="y")).revision == session.revision + 1
            backend.close()


class TestRefusal:
    """Redis refuses a write: nothing is changed, and the message says why."""

    @pytest.fixture
    async def staging(self, backend: Backend) -> Any:
        async with backend.store(lease_s=0.1) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-42", label="x", overrides=["ovr_a"])
            yield staging

    async def refused(self, backend: Backend, staging: AsyncEnvironment, words: str, names: list[str]) -> None:
        before = backend.raw.hgetall(backend.key("ci-42"))
        rev = head_rev(backend)
        for name in names:
            error = await fails((WRITES | DELETE)[name](staging))
            assert words in str(error), name
            assert "nothing was changed" in str(error), name
        assert backend.raw.hgetall(backend.key("ci-42")) == before
        assert head_rev(backend) == rev
        for read in READS.values():
            await read(staging)

    async def test_out_of_memory(self, backend: Backend, staging: AsyncEnvironment) -> None:
        backend.raw.config_set("maxmemory", "1")
        await self.refused(backend, staging, "out of memory", list(WRITES))

        backend.raw.config_set("maxmemory", "0")
        assert (await staging.put("ci-42", label="new")).label == "new"
        backend.raw.config_set("maxmemory", "1")
        assert await staging.delete("ci-42")

    async def test_read_only(self, backend: Backend, staging: AsyncEnvironment) -> None:
        backend.raw.replicaof("127.0.0.1", "1")
        await self.refused(backend, staging, "read-only replica", [*WRITES, "delete"])

        backend.raw.replicaof("NO", "ONE")
        assert (await recovers(lambda: staging.put("ci-42", label="new"))).label == "new"

    async def test_can_not_save(self, backend: Backend, staging: AsyncEnvironment) -> None:
        # Given a snapshot that fails, because its file is a folder
        server = backend.server
        assert isinstance(server, RedisServer)
        (server.folder / "dump.rdb").mkdir()
        backend.raw.config_set("save", "3600 1")
        backend.raw.bgsave()
        deadline = time.monotonic() + ENDS_WITHIN_S
        while backend.raw.info("persistence")["rdb_last_bgsave_status"] != "err":
            assert time.monotonic() < deadline
        await self.refused(backend, staging, "can't save to disk", [*WRITES, "delete"])

        backend.raw.config_set("save", "")
        assert (await staging.put("ci-42", label="new")).label == "new"

    async def test_too_few_replicas(self, backend: Backend, staging: AsyncEnvironment) -> None:
        backend.raw.config_set("min-replicas-to-write", "1")
        await self.refused(backend, staging, "too few replicas", [*WRITES, "delete"])

        backend.raw.config_set("min-replicas-to-write", "0")
        assert (await staging.put("ci-42", label="new")).label == "new"

    async def test_no_permission(self, backend: Backend, staging: AsyncEnvironment) -> None:
        backend.raw.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")
        error = await fails(staging.put("ci-42", label="new"))
        assert "denies this user" in str(error)

        backend.raw.execute_command("ACL", "SETUSER", "default", "+@all")
        assert (await staging.put("ci-42", label="new")).label == "new"

    async def test_no_permission_to_publish(self, backend: Backend, staging: AsyncEnvironment) -> None:
        # New users of Redis 7 may use no channel. Redis refuses before the script writes
        backend.raw.execute_command("ACL", "SETUSER", "default", "resetchannels")
        await self.refused(backend, staging, "denies this user", [*WRITES, "delete"])

        backend.raw.execute_command("ACL", "SETUSER", "default", "allchannels")
        assert (await staging.put("ci-42", label="new")).label == "new"

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (b"-LOADING Redis is loading the dataset in memory\r\n", "still loading"),
            (b"-BUSY Redis is busy running a script.\r\n", "busy"),
            (b"-MASTERDOWN Link with MASTER is down\r\n", "lost its primary"),
            (b"-CLUSTERDOWN The cluster is down\r\n", "its cluster is down"),
            (b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n", "moving its data"),
        ],
    )
    async def test_refuses_while_redis_is_loading_or_busy(self, driver: Driver, answer: bytes, words: str) -> None:
        with StubServer(answer) as stub:
            async with open_store(driver, stub.url) as store:
                staging = store.environment("checkout", "staging")
                for call in (READS | WRITES | DELETE).values():
                    error = await fails(call(staging))
                    assert words in str(error)
                    assert "nothing was changed" in str(error)
                assert stub.calls == len(READS | WRITES | DELETE), "each was sent once"

                # When it has loaded
                stub.answer = b'$35\r\n{"status":"ok","now":1,"touched":1}\r\n'
                assert await staging.touch({"ci-42": 5}) == 1


class TestHang:
    async def test_a_sent_write_has_an_unknown_outcome(self, backend: Backend) -> None:
        server = backend.server
        assert isinstance(server, RedisServer)
        async with backend.store(lease_s=0.1, deadline_s=DEADLINE_S) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-42", label="x")
            server.pause()
            try:
                error = await fails(staging.put("ci-42", label="new"), OutcomeUnknownError)
                assert "did not answer in time" in str(error)
                # The next write has to connect, and so is never sent
                await fails(staging.put("ci-42", label="newer"))
                await fails(staging.get("ci-42"))
            finally:
                server.resume()

            session = await recovers(lambda: staging.put("ci-42", label="y"))
            assert session.label == "y"
            assert session.revision in (2, 3)
            assert head_rev(backend) == session.revision

    async def test_a_write_before_the_first_connection_changes_nothing(self, backend: Backend) -> None:
        server = backend.server
        assert isinstance(server, RedisServer)
        async with backend.store(lease_s=0.1, deadline_s=DEADLINE_S) as store:
            server.pause()
            try:
                await fails(store.environment("checkout", "staging").put("ci-42"))
            finally:
                server.resume()
            await recovers(lambda: store.environment("checkout", "staging").put("ci-42"))


class TestForgetting:
    async def test_loads_forgotten_scripts_again(self, backend: Backend) -> None:
        async with backend.store(lease_s=0.1) as store:
            staging = store.environment("checkout", "staging")
            for number in range(5):
                backend.raw.script_flush()
                assert (await staging.put("ci-42", label=str(number))).revision == number + 1
                backend.raw.script_flush()
                assert (await staging.get("ci-42") or pytest.fail("gone")).label == str(number)

    async def test_replaces_killed_connections(self, backend: Backend) -> None:
        async with backend.store(lease_s=0.1) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-42")
            mine = backend.raw.client_id()
            for number in range(20):
                for client in backend.raw.client_list():
                    if int(client["id"]) != mine:
                        backend.raw.client_kill_filter(_id=client["id"])
                await asyncio.sleep(0)
                write = partial(staging.put, "ci-42", label=str(number))
                assert (await recovers(write)).label == str(number)

    async def test_serves_an_emptied_redis(self, backend: Backend) -> None:
        async with backend.store(lease_s=0.1) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-42", label="x")
            await staging.put("ci-42", label="y")
            backend.raw.flushall()

            assert await staging.get("ci-42") is None
            session = await staging.put("ci-42")
            assert (session.revision, session.label) == (1, None)
            # The store waited, because leases may have been lost
            assert session.effect is not None
            assert session.effect.effective_s > 0


class TestLostAnswers:
    """A write whose answer is lost is never sent twice."""

    @pytest.fixture
    def relay(self, backend: Backend) -> Iterator[Relay]:
        server = backend.server
        assert isinstance(server, RedisServer)
        with Relay(server.port) as relay:
            yield relay

    @pytest.mark.parametrize(
        ("name", "mode"),
        # One answer is lost. Then the link works, so that a second copy of the write would arrive.
        [*((name, "close once") for name in [*WRITES, "delete"]), ("put", "close"), ("put", "hold"), ("put", "drop")],
    )
    async def test_a_write_with_a_lost_answer_runs_once(
        self, backend: Backend, relay: Relay, mode: Any, name: str
    ) -> None:
        async with open_store(backend.driver, relay.url, prefix=backend.prefix) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-42", label="x", overrides=["ovr_a"])
            for script in script_names():
                backend.raw.script_load(load_script(script).text)
            backend.raw.config_resetstat()
            relay.set(to_client=mode)

            error = await fails((WRITES | DELETE)[name](staging), OutcomeUnknownError)

            assert "applied whole or not at all" in str(error)
            stats = backend.raw.info("commandstats")
            assert (stats["cmdstat_evalsha"]["calls"], "cmdstat_eval" in stats) == (1, False)
            assert head_rev(backend) == (1 if name in ("repeat", "touch") else 2)
            relay.set()
            await recovers(lambda: staging.put("ci-42", label="again"))

    async def test_a_client_that_retries_does_not_repeat_the_write(self, backend: Backend, relay: Relay) -> None:
        client = backend.client(port=relay.port, retry=_patient(backend.driver))
        async with backend.on_client(client, lease_s=0.1, deadline_s=DEADLINE_S) as store:
            staging = store.environment("checkout", "staging")
            for number in range(5):
                await recovers(partial(staging.put, "ci-42", label=str(number)))
                rev = head_rev(backend)
                relay.set(to_client="close")
                await fails(staging.put("ci-42", label=f"lost {number}"), OutcomeUnknownError)
                assert head_rev(backend) == rev + 1
                relay.set()
        if backend.driver == "sync":
            client.close()
        else:
            await client.aclose()

    async def test_a_write_that_did_not_arrive_has_an_unknown_outcome(self, backend: Backend, relay: Relay) -> None:
        async with open_store(backend.driver, relay.url, prefix=backend.prefix) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("ci-42")
            relay.set(to_server="close")
            await fails(staging.put("ci-42", label="x"), OutcomeUnknownError)
            relay.set(to_server="drop")
            await fails(staging.get("ci-42"))
            relay.refuse()
            await fails(staging.put("ci-42", label="x"))
            assert head_rev(backend) == 1

            relay.accept()
            relay.set()
            assert (await recovers(lambda: staging.put("ci-42", label="x"))).revision == 2

    async def test_a_late_answer_reaches_no_other_call(self, backend: Backend, relay: Relay) -> None:
        async with open_store(backend.driver, relay.url, prefix=backend.prefix) as store:
            staging = store.environment("checkout", "staging")
            for key in ("a", "b"):
                await staging.put(key, label=key)
            relay.set(to_client="hold")
            await fails(staging.get("a"))
            relay.set()

            for key in ("b", "a", "b"):
                assert (await staging.get(key) or pytest.fail("gone")).label == key


GARBAGE = [
    b"$5\r\nhello\r\n",
    b"$-1\r\n",
    b"_\r\n",
    b":5\r\n",
    b"+OK\r\n",
    b"*2\r\n:1\r\n:2\r\n",
    b"%1\r\n+a\r\n+b\r\n",
    b"#t\r\n",
    b'$16\r\n{"status":"odd"}\r\n',
    b'$4\r\n"\xff\xfe"\r\n',
    b"$3\r\n\xff\xfe\xfd\r\n",
    b"-ERR who knows\r\n",
    b"-\r\n",
    b"nonsense\r\n",
    b"\r\n",
    b"$x\r\n",
    b"$999999\r\nshort\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\x00\x01\x02\x03",
    b"",
]


@pytest.mark.parametrize("answer", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_is_an_error(driver: Driver, answer: bytes) -> None:
    with StubServer(answer) as stub:
        # Some look like the start of a long answer, and take the whole deadline.
        async with open_store(driver, stub.url, deadline_s=0.1) as store:
            staging = store.environment("checkout", "staging")
            for call in (READS["get"], READS["list"], WRITES["put"], WRITES["touch"], DELETE["delete"]):
                with pytest.raises(SessionStoreError) as caught:
                    await call(staging)
                assert isinstance(caught.value, CorruptDataError | StoreUnavailableError)
            # Then the store reads the next answer from its beginning
            stub.answer = b'$35\r\n{"status":"ok","now":1,"touched":1}\r\n'
            assert await recovers(lambda: staging.touch({"ci-42": 5})) == 1


class TestInterrupted:
    """A call that ends midway leaves its answer to no other call."""

    def test_interrupting_calls_at_any_moment(self, shared_redis: RedisServer, prefix: str) -> None:
        command = [sys.executable, "-m", "tests.support.interrupted", shared_redis.url, prefix]

        # An interrupt inside coverage could leave its lock locked.
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=50, cwd=ROOT, env=unmeasured(), check=False
        )

        assert ended.returncode == 0, ended.stderr

    def test_interrupting_a_handshake(
        self, shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with SessionStore.from_url(shared_redis.url, prefix=prefix, lease_s=0.1, max_connections=1) as store:

            def read_response(*args: Any, **kwargs: Any) -> Any:
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(redis.Connection, "read_response", read_response)
                with pytest.raises(KeyboardInterrupt):
                    store.ping()

            # Then the connection, which still waits for an answer, was closed before the pool got it back
            [connection] = store._runner.pool._available_connections
            assert not connection.is_connected
            store.ping()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
    def test_an_exception_during_a_read(
        self, shared_redis: RedisServer, prefix: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with SessionStore.from_url(shared_redis.url, prefix=prefix, lease_s=0.1, max_connections=1) as store:
            staging = store.environment("checkout", "staging")
            for key in ("a", "b"):
                staging.put(key, label=key)

            def read_response(*args: Any, **kwargs: Any) -> Any:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(redis.Connection, "read_response", read_response)
                with pytest.raises(error):
                    staging.get("a")

            for key in ("b", "a"):
                assert (staging.get(key) or pytest.fail("gone")).label == key


async def test_calls_wait_for_a_free_connection(driver: Driver, shared_redis: RedisServer, prefix: str) -> None:
    async with open_store(driver, shared_redis.url, prefix=prefix, max_connections=2, deadline_s=10) as store:
        staging = store.environment("checkout", "staging")
        await asyncio.gather(*(staging.put(f"ci-{number}") for number in range(50)))
        assert len((await staging.list(limit=100)).sessions) == 50


def _patient(driver: Driver) -> Any:
    """A retry policy that sends a script ten times."""
    if driver == "sync":
        return Retry(ConstantBackoff(5), 10)
    from redis.asyncio.retry import Retry as AsyncRetry

    return AsyncRetry(ConstantBackoff(5), 10)
