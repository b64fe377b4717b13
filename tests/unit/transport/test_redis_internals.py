"""redis-py's undocumented names still mean what the pool for threads takes them for."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import redis

from sessionstore.transport import redis_internals

from ...support.redis_server import RedisServer


def test_collections_of_a_pool_hold_idle_and_lent_connections(shared_redis: RedisServer) -> None:
    pool: Any = redis.ConnectionPool.from_url(shared_redis.url)
    idle, lent = redis_internals.idle_connections(pool), redis_internals.lent_connections(pool)

    connection = pool.get_connection()
    assert (idle, lent) == ([], {connection})

    pool.release(connection)
    assert (idle, lent) == ([connection], set())

    # redis-py closes the connections that a pool of ours has put there
    pool.disconnect()
    assert not connection.is_connected


def test_pool_disconnects_under_its_lock() -> None:
    pool: Any = redis.ConnectionPool()
    owned = []

    class Connection:
        def disconnect(self) -> None:
            owned.append(redis_internals.pool_lock(pool)._is_owned())

    redis_internals.idle_connections(pool).append(Connection())
    pool.disconnect()

    assert owned == [True]


def test_replaced_locks_are_free() -> None:
    pool: Any = redis.ConnectionPool()
    locks = (pool._lock, pool._fork_lock)

    redis_internals.replace_locks(pool)

    assert pool._lock not in locks
    assert pool._fork_lock not in locks


def test_check_of_the_process_resets_an_inherited_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: Any = redis.ConnectionPool()
    monkeypatch.setattr(pool, "pid", os.getpid() + 1)
    idle = redis_internals.idle_connections(pool)

    redis_internals.check_process(pool)

    assert pool.pid == os.getpid()
    assert redis_internals.idle_connections(pool) is not idle


def test_shut_down_connection_reads_nothing(shared_redis: RedisServer) -> None:
    pool: Any = redis.ConnectionPool.from_url(shared_redis.url)
    connection: Any = pool.get_connection()
    assert isinstance(connection._sock, socket.socket)

    redis_internals.shut_down(connection)

    with pytest.raises(redis.ConnectionError):
        connection.read_response()
    # A connection without a socket is left alone
    connection.disconnect()
    redis_internals.shut_down(connection)
    pool.disconnect()
