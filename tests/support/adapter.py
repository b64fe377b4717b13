"""One test for both drivers: the store for threads with the asyncio store's methods."""

from __future__ import annotations

import gc
import inspect
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import fakeredis
import redis.asyncio.sentinel
import redis.sentinel

from sessionstore import ApiKeys, AsyncSessionStore, EmbeddedServer, SessionStore
from sessionstore.client import AsyncSessionClient, SessionClient
from sessionstore.replica.view import BaseView

from .redis_cluster import RedisCluster
from .redis_sentinel import SERVICE, RedisSentinels
from .redis_server import RedisServer

__all__ = ["DAY_MS", "Backend", "Driver", "as_async", "as_async_client", "open_at"]

DAY_MS = 86_400_000

Driver = Literal["sync", "asyncio"]

_ASYNC_NAMES = {"aclose": "close"}
#: Methods that return an object with methods, and methods of views that are no coroutines in asyncio either.
_MAKERS = ("environment", "project", "session", "view")
_PLAIN = ("get", "peek", "subscribe")


class _Awaitable:
    """Wraps a store for threads, or an object that it made, so that a test can await its methods."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, _ASYNC_NAMES.get(name, name))
        if isinstance(value, ApiKeys):
            return _Awaitable(value)
        if not inspect.ismethod(value):
            return value
        if name in _MAKERS:
            return lambda *args, **kwargs: _Awaitable(value(*args, **kwargs))
        if isinstance(self._target, BaseView) and name in _PLAIN:
            return value
        return _awaitable(value)

    async def open(self) -> _Awaitable:
        self._target.open()
        return self

    async def __aenter__(self) -> _Awaitable:
        self._target.__enter__()
        return self

    async def __aexit__(self, *details: Any) -> None:
        self._target.__exit__(*details)


def _awaitable(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def as_async(store: SessionStore) -> AsyncSessionStore:
    """The store for threads with the asyncio store's interface. Its calls block the loop."""
    return cast(AsyncSessionStore, _Awaitable(store))


def open_at(driver: Driver, url: str, **options: Any) -> AsyncSessionStore:
    """A store of a driver; the test closes it."""
    if driver == "sync":
        return as_async(SessionStore.from_url(url, **options))
    return AsyncSessionStore.from_url(url, **options)


def as_async_client(client: SessionClient) -> AsyncSessionClient:
    """The HTTP client for threads with the asyncio client's face. Its calls block the loop."""
    return cast(AsyncSessionClient, _Awaitable(client))


class Backend:
    """A driver on a server. It makes stores, and `raw` reads Redis without them."""

    def __init__(
        self, driver: Driver, server: RedisServer | RedisCluster | RedisSentinels | EmbeddedServer, prefix: str
    ) -> None:
        self.driver = driver
        self.server = server
        self.prefix = prefix
        self.raw: Any = (
            fakeredis.FakeRedis.from_pool(server.client().connection_pool)
            if isinstance(server, EmbeddedServer)
            else server.client(decode_responses=True)
        )

    @property
    def kind(self) -> str:
        """``fakeredis``, ``redis``, ``cluster`` or ``sentinels``."""
        kinds = {RedisServer: "redis", RedisCluster: "cluster", RedisSentinels: "sentinels"}
        return kinds.get(type(self.server), "fakeredis")

    @contextmanager
    def shard(self) -> Iterator[Any]:
        """A plain client of the server that has the project ``checkout``."""
        if not isinstance(self.server, RedisCluster):
            yield self.raw
            return
        primary = self.server.primary_of(self.server.slot_of("{checkout}"))
        with primary.client(decode_responses=True) as client:
            yield client

    @property
    def real(self) -> bool:
        return not isinstance(self.server, EmbeddedServer)

    def store(self, **options: Any) -> AsyncSessionStore:
        """A store of the backend's driver; the test closes it."""
        if not isinstance(self.server, EmbeddedServer):
            return self.store_at(self.server.url, **options)
        options = {"prefix": self.prefix, **options}
        if self.driver == "sync":
            return as_async(SessionStore.embedded(self.server, **options))
        return AsyncSessionStore.embedded(self.server, **options)

    def store_at(self, url: str, **options: Any) -> AsyncSessionStore:
        """A store of the backend's driver at another address of the server."""
        return open_at(self.driver, url, **{"prefix": self.prefix, **options})

    def client(self, **options: Any) -> Any:
        """A redis-py client of the driver's kind, owned by the caller."""
        if isinstance(self.server, EmbeddedServer):
            options["server"] = self.server.client().connection_pool.connection_kwargs["server"]
            return fakeredis.FakeRedis(**options) if self.driver == "sync" else fakeredis.FakeAsyncRedis(**options)
        library: Any = redis if self.driver == "sync" else redis.asyncio
        if isinstance(self.server, RedisCluster):
            return library.RedisCluster(host="127.0.0.1", port=self.server.nodes[0].port, **options)
        if isinstance(self.server, RedisSentinels):
            nodes = [("127.0.0.1", sentinel.port) for sentinel in self.server.sentinels]
            encryption = {name: value for name, value in options.items() if name.startswith("ssl")}
            return library.sentinel.Sentinel(nodes, sentinel_kwargs=encryption).master_for(SERVICE, **options)
        options = {"host": "127.0.0.1", "port": self.server.port, **options}
        return library.Redis(**options)

    def on_client(self, client: Any, **options: Any) -> AsyncSessionStore:
        """A store on a client that the caller owns."""
        options = {"prefix": self.prefix, **options}
        if self.driver == "sync":
            return as_async(SessionStore(client, **options))
        return AsyncSessionStore(client, **options)

    def close(self) -> None:
        if isinstance(self.server, RedisSentinels):
            # pytest shows this with a failed test.
            print(self.server.last_words())
        self.raw.close()
        if isinstance(self.raw, redis.RedisCluster):
            # redis-py leaves the connection open on which this client read the slots first.
            del self.raw
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()

    def key(self, session_key: str) -> str:
        return f"{self.prefix}:{{checkout}}:staging:s:{session_key}"
