# Generated from aio/store.py by .ci/unasync.py: change that file instead.
"""The store for threads."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, Unpack

import redis

from ..embedded import EmbeddedServer
from ..options import MAX_CONNECTIONS, StoreConfig, StoreOptions
from ..protocol import operations
from ..session import validate_actor
from ..transport.connect import pool_from_url, pool_like, take_replicas
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
    client : redis.Redis
        A client of one primary. The store makes its own connections with the client's address and credentials. It uses
        none of the client's time-outs and retries: a write without an answer must not be sent again.
    **options
        See `StoreConfig`.
    """

    def __init__(self, client: redis.Redis, **options: Unpack[StoreOptions]) -> None:
        config = StoreConfig(**options)
        self._open(pool_like(Pool, client, pool_settings(config)), config)

    def _open(self, pool: Any, config: StoreConfig) -> Self:
        self._runner = Runner(pool, config)
        return self

    @classmethod
    def from_url(cls, url: str, *, max_connections: int = MAX_CONNECTIONS, **options: Unpack[StoreOptions]) -> Self:
        """Make a store for ``redis://``, ``rediss://`` or ``unix://``, with password and database.

        ``?replicas=N`` in the URL is the option `replicas`, which wins if both are given. The store connects at the
        first call.
        """
        url = take_replicas(url, options)
        config = StoreConfig(**options)
        return cls.__new__(cls)._open(pool_from_url(Pool, url, max_connections, pool_settings(config)), config)

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
    def connection_pool(self) -> redis.ConnectionPool:
        """Connections to the store's Redis, for code that shares it. Release each after use."""
        pool: redis.ConnectionPool = self._runner.connections.pool
        return pool

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

    def close(self) -> None:
        """Close the store's own connections. Closing twice is fine."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
