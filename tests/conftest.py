"""Fixtures for all tests: a real Redis, fakeredis, and stores on either."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, cast

import pytest

from sessionstore import EmbeddedServer

from .support.adapter import Driver
from .support.redis_cluster import RedisCluster
from .support.redis_sentinel import PATIENT_MS, RedisSentinels
from .support.redis_server import MISSING, RedisServer, find_redis_server

pytest_plugins = ["pytester"]

_prefixes = itertools.count()


def pytest_configure() -> None:
    """Let the processes that tests start take SIGINT: a shell starts background processes with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def require_redis_server() -> None:
    """Skip where there is no redis-server; under CI=true that is a failure."""
    if find_redis_server() is None:
        _give_up(MISSING)


def require_tls() -> None:
    """Skip where the redis-server was built without TLS; under CI=true that is a failure."""
    require_redis_server()
    program = find_redis_server()
    assert program is not None
    if b"tls-replication" not in Path(program).read_bytes():
        _give_up(f"{program} was built without TLS")


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lasting_redis() -> Iterator[RedisServer]:
    """What is behind `shared_redis`."""
    require_redis_server()
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def shared_redis(lasting_redis: RedisServer) -> Iterator[RedisServer]:
    """A real Redis for all tests that leave it running; use it with a `prefix` of your own, and don't flush it.

    It is emptied after each module: tests that look through all its keys would become slower and slower.
    """
    yield lasting_redis
    with lasting_redis.client() as client:
        client.flushall()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A real Redis for one test, which may flush, stop, restart or pause it."""
    require_redis_server()
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RedisCluster]:
    """A real cluster for all tests that leave it as it is; use it with a `prefix` of your own."""
    require_redis_server()
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_sentinels() -> Iterator[RedisSentinels]:
    """A real primary with sentinels for all tests that leave it as it is; use it with a `prefix` of your own."""
    require_redis_server()
    with RedisSentinels(down_after_ms=PATIENT_MS) as sentinels:
        yield sentinels


@pytest.fixture
def own_cluster() -> Iterator[RedisCluster]:
    """A real cluster for one test, which may move slots and stop nodes."""
    require_redis_server()
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def own_sentinels() -> Iterator[RedisSentinels]:
    """A real primary with sentinels for one test, which may stop servers."""
    require_redis_server()
    with RedisSentinels() as sentinels:
        yield sentinels


@pytest.fixture(params=["sync", "asyncio"])
def driver(request: pytest.FixtureRequest) -> Driver:
    """Each driver."""
    return cast(Driver, request.param)


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test uses."""
    return f"t{next(_prefixes)}"


@pytest.fixture
def embedded_server() -> Iterator[EmbeddedServer]:
    """A fakeredis server for one test."""
    with EmbeddedServer() as server:
        yield server
