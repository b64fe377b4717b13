# Generated from aio/store.py by .ci/unasync.py: change that file instead.
"""The store for threads."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

import redis

from ..embedded import EmbeddedServer
from ..errors import SessionStoreError
from ..options import MAX_CONNECTIONS, StoreConfig, StoreOptions
from ..protocol import operations
from ..session import validate_actor
from ..transport.connect import pool_from_url, pool_like, take_replicas
from ..transport.topology import Site
from .api_keys import ApiKeys
from .environment import Environment
from .pool import Pool, pool_settings
from .project import Project
from .runner import Runner


class SessionStore:
    """Sessions in Redis, for threads. Any thread may use it.

    Open it with `from_url`, with `embedded`, or on a redis-py client that the caller owns and closes. Use it as a
    context manager, or call `close`.

    Parameters
    ----------
    client : redis.Redis or redis.RedisCluster
        A client of one primary, of a cluster, or of a primary that sentinels name (``Sentinel.master_for``). The store
        makes its own connections with the client's addresses and credentials. It uses none of the client's time-outs
        and retries: a write without an answer must not be sent again.
    **options
        See `StoreConfig`.
    """

    def __init__(self, client: redis.Redis | redis.RedisCluster, **options: Unpack[StoreOptions]) -> None:
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
        return cls((server or EmbeddedServer()).client(), **options)

    @property
    def config(self) -> StoreConfig:
        """The store's settings."""
        return self._runner.config

    @property
    def api_keys(self) -> ApiKeys:
        """The API keys of every project; no I/O."""
        return ApiKeys(self._runner)

    @property
    def site(self) -> Site:
        """What locates the primary: None, a `Cluster` or `Sentinels`, for code that makes a client of its own."""
        return self._runner.site

    def environment(self, project: str, environment: str, *, actor: str | None = None) -> Environment:
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
        return Environment(self._runner, self.config.context(project, environment), actor)

    def project(self, project: str) -> Project:
        """A project's environments and catalogs; no I/O.

        Raises
        ------
        InvalidSlugError
        """
        return Project(self._runner, project)

    def ping(self) -> None:
        """Make one round trip.

        Raises
        ------
        StoreUnavailableError
        """
        self._runner.run(operations.ping())

    def check_primaries(self, within_s: float = 1.0) -> dict[str, SessionStoreError | None]:
        """Ping each primary on a connection of its own, within so many seconds.

        Returns the address of each, as ``host:port``, with None or its error. A primary that has just been replaced may
        still be among them.

        Raises
        ------
        StoreUnavailableError
            No node of the cluster or no sentinel could be asked.
        """
        return self._runner.connections.check_primaries(within_s)

    def close(self) -> None:
        """Close the store's own connections. Closing twice is fine."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
