"""The asyncio store."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

import redis.asyncio

from ..embedded import EmbeddedServer
from ..errors import SessionStoreError
from ..options import MAX_CONNECTIONS, StoreConfig, StoreOptions
from ..protocol import operations
from ..session import validate_actor
from ..transport.connect import pool_from_url, pool_like, take_replicas
from ..transport.topology import Site
from .api_keys import AsyncApiKeys
from .environment import AsyncEnvironment
from .pool import Pool, pool_settings
from .project import AsyncProject
from .runner import Runner


class AsyncSessionStore:
    """Sessions in Redis, for asyncio. It belongs to one event loop.

    Open it with `from_url`, with `embedded`, or on a redis-py client that the caller owns and closes. Use it as a
    context manager, or call `aclose`.

    Parameters
    ----------
    client : redis.asyncio.Redis or redis.asyncio.RedisCluster
        A client of one primary, of a cluster, or of a primary that sentinels name (``Sentinel.master_for``). The store
        makes its own connections with the client's addresses and credentials. It uses none of the client's time-outs
        and retries: a write without an answer must not be sent again.
    **options
        See `StoreConfig`.
    """

    def __init__(
        self, client: redis.asyncio.Redis | redis.asyncio.RedisCluster, **options: Unpack[StoreOptions]
    ) -> None:
        config = StoreConfig(**options)
        self._runner = Runner(*pool_like(Pool, client, pool_settings(config)), config)

    @classmethod
    def from_url(cls, url: str, *, max_connections: int = MAX_CONNECTIONS, **options: Unpack[StoreOptions]) -> Self:
        """Make a store for a Redis URL, with password and database. It connects at the first call.

        ``redis://``, ``rediss://`` or ``unix://`` for one Redis; ``redis+cluster://host:port,…`` for a cluster;
        ``redis+sentinel://host:port,…/service`` for the primary that sentinels name; the last two also with ``rediss``.
        ``?replicas=N`` in the URL is the option `replicas`, which wins if both are given.
        """
        url = take_replicas(url, options)
        config = StoreConfig(**options)
        store = cls.__new__(cls)
        store._runner = Runner(*pool_from_url(Pool, url, max_connections, pool_settings(config)), config)
        return store

    @classmethod
    def embedded(cls, server: EmbeddedServer | None = None, **options: Unpack[StoreOptions]) -> Self:
        """Make a store in this process's memory, without Redis, for tests and demos.

        Stores on one `server` share it.
        """
        return cls((server or EmbeddedServer()).async_client(), **options)

    @property
    def config(self) -> StoreConfig:
        """The store's settings."""
        return self._runner.config

    @property
    def api_keys(self) -> AsyncApiKeys:
        """The API keys of every project; no I/O."""
        return AsyncApiKeys(self._runner)

    @property
    def site(self) -> Site:
        """What locates the primary: None, a `Cluster` or `Sentinels`, for code that makes a client of its own."""
        return self._runner.site

    def environment(self, project: str, environment: str, *, actor: str | None = None) -> AsyncEnvironment:
        """The sessions of one environment; no I/O.

        Parameters
        ----------
        project, environment : str
            Their slugs.
        actor : str, optional
            Who writes, in place of the store's `actor`.

        Raises
        ------
        InvalidSlugError
        """
        actor = self.config.actor if actor is None else validate_actor(actor)
        return AsyncEnvironment(self._runner, self.config.context(project, environment), actor)

    def project(self, project: str) -> AsyncProject:
        """A project's environments and catalogs; no I/O.

        Raises
        ------
        InvalidSlugError
        """
        return AsyncProject(self._runner, project)

    async def ping(self) -> None:
        """Make one round trip.

        Raises
        ------
        StoreUnavailableError
        """
        await self._runner.run(operations.ping())

    async def check_primaries(self, within_s: float = 1.0) -> dict[str, SessionStoreError | None]:
        """Ping each primary on a connection of its own, within so many seconds.

        Returns the address of each, as ``host:port``, with None or its error. A primary that has just been replaced may
        still be among them.

        Raises
        ------
        StoreUnavailableError
            No node of the cluster or no sentinel could be asked.
        """
        return await self._runner.connections.check_primaries(within_s)

    async def aclose(self) -> None:
        """Close the store's own connections. Closing twice is fine."""
        await self._runner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
