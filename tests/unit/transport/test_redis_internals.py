"""redis-py's undocumented names still mean what the pool for threads takes them for."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any
from unittest.mock import Mock

import pytest
import redis
import redis.asyncio

from sessionstore import EmbeddedServer
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


async def test_an_asyncio_connection_writes_and_ends_without_a_task(shared_redis: RedisServer) -> None:
    connection: Any = redis.asyncio.Connection(port=shared_redis.port, client_name="internals")
    await connection.connect()

    redis_internals.write(connection, [b"PING\r\n", b"ECHO x\r\n"])
    assert [await connection.read_response() for _ in range(2)] == [b"PONG", b"x"]

    assert not redis_internals.has_ended(connection)
    shared_redis.kill_clients("internals")
    with pytest.raises(redis.ConnectionError):
        await connection.read_response(disconnect_on_error=False)
    assert redis_internals.has_ended(connection)
    await connection.disconnect()


async def test_an_aborted_asyncio_connection_reads_nothing(shared_redis: RedisServer) -> None:
    connection: Any = redis.asyncio.Connection(port=shared_redis.port)
    await connection.connect()

    redis_internals.abort(connection)

    with pytest.raises(redis.ConnectionError):
        await connection.read_response()
    # A connection without a socket is left alone
    await connection.disconnect()
    redis_internals.abort(connection)


async def test_an_embedded_connection_does_so_too(embedded_server: EmbeddedServer) -> None:
    pool: Any = embedded_server.async_client().connection_pool
    connection = await pool.get_connection()

    redis_internals.write(connection, [b"*1\r\n$4\r\nPING\r\n"])
    assert await connection.read_response() == b"PONG"
    assert not redis_internals.has_ended(connection)
    await connection.disconnect()


async def test_a_protocol_takes_an_asyncio_connection_over(shared_redis: RedisServer) -> None:
    connection: Any = redis.asyncio.Connection(port=shared_redis.port)
    await connection.connect()
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            arrived.put_nowait(data)

    assert redis_internals.take_over(connection, Protocol())
    redis_internals.write(connection, [b"PING\r\n"])
    assert await arrived.get() == b"+PONG\r\n"

    redis_internals.abort(connection)
    with pytest.raises(redis.ConnectionError):
        redis_internals.take_over(connection, Protocol())
    # redis-py's own protocol does not see the end, so don't wait for that.
    await connection.disconnect(nowait=True)


async def test_an_embedded_connection_is_not_taken_over(embedded_server: EmbeddedServer) -> None:
    pool: Any = embedded_server.async_client().connection_pool
    connection = await pool.get_connection()

    assert not redis_internals.take_over(connection, asyncio.Protocol())
    await connection.disconnect()


def test_a_connection_for_threads_has_a_socket(shared_redis: RedisServer, embedded_server: EmbeddedServer) -> None:
    pool: Any = redis.ConnectionPool.from_url(shared_redis.url)
    connection = pool.get_connection()
    found = redis_internals.socket_of(connection)
    assert found is not None
    assert found.getpeername()[1] == shared_redis.port
    connection.disconnect()
    assert redis_internals.socket_of(connection) is None

    pool = embedded_server.client().connection_pool
    assert redis_internals.socket_of(pool.get_connection()) is None


def test_an_idle_connection_for_threads_has_input_or_not(
    shared_redis: RedisServer, embedded_server: EmbeddedServer
) -> None:
    pools: list[Any] = [redis.ConnectionPool.from_url(shared_redis.url), embedded_server.client().connection_pool]
    for pool in pools:
        connection = pool.get_connection()
        has_input = redis_internals.input_check(connection)
        assert not has_input()

        # An answer to no command
        connection.send_command("PING")
        deadline = time.monotonic() + 5
        while not has_input():
            assert time.monotonic() < deadline
        connection.disconnect()


def test_a_connection_for_threads_has_input_that_redis_py_has_read_already(shared_redis: RedisServer) -> None:
    pool: Any = redis.ConnectionPool.from_url(shared_redis.url)
    connection = pool.get_connection()

    # Given two answers that arrive together, of which one is taken
    connection.send_packed_command([b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n"])
    assert connection.read_response() == b"PONG"

    has_input = redis_internals.input_check(connection)
    assert has_input()
    assert connection.read_response() == b"PONG"
    assert not has_input()
    connection.disconnect()


def test_a_parser_that_keeps_its_input_elsewhere_is_asked_itself(
    shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: Any = redis.ConnectionPool.from_url(shared_redis.url)
    connection = pool.get_connection()
    # hiredis has its input in a reader of its own
    monkeypatch.setattr(connection._parser, "_buffer", object())
    monkeypatch.setattr(connection, "can_read", mock := Mock(side_effect=[False, True, redis.ConnectionError]))

    has_input = redis_internals.input_check(connection)

    assert [has_input() for _ in range(3)] == [False, True, True]
    assert mock.call_count == 3
    monkeypatch.undo()
    connection.disconnect()


def test_a_connection_that_redis_has_ended_has_input(shared_redis: RedisServer) -> None:
    pool: Any = redis.ConnectionPool.from_url(shared_redis.url, client_name="ended")
    connection = pool.get_connection()
    has_input = redis_internals.input_check(connection)

    shared_redis.kill_clients("ended")

    deadline = time.monotonic() + 5
    while not has_input():
        assert time.monotonic() < deadline
    connection.disconnect()


def test_an_error_reply_becomes_redis_pys_exception() -> None:
    moved = redis_internals.parse_error("MOVED 3999 127.0.0.1:6381")

    assert isinstance(moved, redis.exceptions.MovedError)
    assert (moved.host, moved.port) == ("127.0.0.1", 6381)
    assert str(redis_internals.parse_error("ERR no such key")) == "no such key"
