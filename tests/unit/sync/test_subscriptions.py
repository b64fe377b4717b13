"""The driver for threads: which thread sends an acknowledgement, and which one waits for its answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sessionstore import Environment, SessionStore
from sessionstore.protocol.calls import Call

from ...support.redis_server import RedisServer

PUBSUB, CALLS = "sessionstore-pubsub", "sessionstore-calls"


class Spy:
    """Records the calls of a view's driver and their threads. It may delay an answer or deny a connection."""

    def __init__(self, store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver: Any = store._runner.driver
        self.begun: list[tuple[str, str]] = []
        self.finished: list[tuple[str, bool]] = []
        self.executed: list[tuple[str, str]] = []
        #: the fault of the next acknowledgement
        self.is_late = False
        self.has_no_connection = False
        connections = self.driver._connections
        begin, finish, execute_all = connections.begin, connections.finish, connections.execute_all

        def begin_and_record(calls: list[Call[Any]]) -> Any:
            self.begun += [(threading.current_thread().name, call.script.name) for call in calls]
            return None if self.has_no_connection else begin(calls)

        def finish_and_record(sent: Any, within_s: float | None = None) -> Any:
            answers = None if self.is_late and within_s is not None else finish(sent, within_s)
            self.finished.append((threading.current_thread().name, answers is not None))
            return answers

        def execute_and_record(calls: list[Call[Any]]) -> Any:
            self.executed += [(threading.current_thread().name, call.script.name) for call in calls]
            return execute_all(calls)

        monkeypatch.setattr(connections, "begin", begin_and_record)
        monkeypatch.setattr(connections, "finish", finish_and_record)
        monkeypatch.setattr(connections, "execute_all", execute_and_record)


@pytest.fixture
def staging(shared_redis: RedisServer, prefix: str) -> Iterator[Environment]:
    """An environment with one session, in a store without a view."""
    with SessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        environment = store.environment("checkout", "staging")
        environment.put("ci-42")  # on a new server, the first write waits for a lease
        yield environment


@pytest.fixture
def proxy(staging: Environment, shared_redis: RedisServer, prefix: str) -> Iterator[SessionStore]:
    """A store with a view."""
    with (
        SessionStore.from_url(shared_redis.url, prefix=prefix) as store,
        store.environment("checkout", "staging").view(touch_interval_s=3600),
    ):
        yield store


def test_the_thread_that_reads_a_change_acknowledges_it(
    proxy: SessionStore, staging: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(proxy, monkeypatch)

    # When some writes wait, of which a renewal may acknowledge one or another
    effects = [staging.put("ci-42", label=str(number)).effect for number in range(20)]

    assert all(effect is not None and (effect.confirmed, effect.expired) == (1, 0) for effect in effects)
    assert set(spy.begun) == {(PUBSUB, "ack")}
    assert (PUBSUB, True) in spy.finished


def test_the_other_thread_waits_for_a_slow_answer(
    proxy: SessionStore, staging: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(proxy, monkeypatch)
    spy.is_late = True

    # When answers don't come at once, again and again
    effects = [staging.put("ci-42", label=str(number)).effect for number in range(20)]

    # Then each write is still effective, and no connection is lost
    assert all(effect is not None and effect.confirmed == 1 for effect in effects)
    assert (PUBSUB, False) in spy.finished
    assert (CALLS, True) in spy.finished
    assert (PUBSUB, True) not in spy.finished
    staging.put("ci-42", label="last")
    pool = spy.driver._pool
    assert len(pool._in_use_connections) + len(pool._available_connections) <= 3


def test_without_an_idle_connection_the_other_thread_acknowledges(
    proxy: SessionStore, staging: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(proxy, monkeypatch)
    spy.has_no_connection = True

    effects = [staging.put("ci-42", label=str(number)).effect for number in range(20)]

    assert all(effect is not None and effect.confirmed == 1 for effect in effects)
    assert (CALLS, "ack") in spy.executed


def test_only_an_idle_connection_is_lent_at_once(shared_redis: RedisServer, prefix: str) -> None:
    url = f"{shared_redis.url}?client_name={prefix}"
    with SessionStore.from_url(url, prefix=prefix, max_connections=1) as store:
        pool = store._runner.connections.pool

        # Given no connection yet, then
        assert pool.get_idle_connection() is None

        # Given one that is lent, then there is no other; and given back, it is the same again
        store.ping()
        lent = pool.get_idle_connection()
        assert lent is not None
        assert pool.get_idle_connection() is None
        pool.release(lent)
        assert pool.get_idle_connection() is lent
        pool.release(lent)

        # Given that Redis has closed it, then it is not lent, and a call that can wait makes it anew
        shared_redis.kill_clients(prefix)
        assert pool.get_idle_connection() is None
        store.ping()
        assert pool.get_idle_connection() is lent
        pool.release(lent)


def test_a_write_meets_no_connection_that_is_of_no_use(shared_redis: RedisServer, prefix: str) -> None:
    url = f"{shared_redis.url}?client_name={prefix}"
    with SessionStore.from_url(url, prefix=prefix, max_connections=1) as store:
        staging = store.environment("checkout", "staging")
        staging.put("ci-42", label="a")

        # Given that Redis has closed the idle connection
        shared_redis.kill_clients(prefix)
        assert staging.put("ci-42", label="b").label == "b"

        # Given that it holds an answer to no command
        pool = store._runner.connections.pool
        lent = pool.get_idle_connection()
        assert lent is not None
        lent.send_command("PING")
        assert lent.can_read(timeout=5)
        pool.release(lent)
        assert staging.put("ci-42", label="c").label == "c"
