"""The asyncio store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

import redis.asyncio
from msgspec import UNSET, UnsetType

from ..catalog.model import Catalog, ScenarioPage
from ..embedded import EmbeddedServer
from ..errors import SessionStoreError, StoreClosedError
from ..options import CLOSED, MAX_CONNECTIONS, StoreConfig, StoreOptions
from ..protocol import catalog_operations, operations
from ..protocol.calls import IfMatch, WriteContext
from ..protocol.operations import AwaitApplied, Operation, Pause
from ..replica.follower import DEFAULT_TOUCH_INTERVAL_S
from ..replica.view import DEFAULT_OPEN_TIMEOUT_S, OnStale
from ..session import Deletion, LiveView, Session, SessionPage
from ..transport.connect import client_options, database_of, pool_from_url, pool_like
from ..transport.errors import closed_error
from .api_keys import AsyncApiKeys
from .connections import Connections
from .pool import Pool
from .project import AsyncProject
from .subscriptions import SubscriptionsDriver
from .view import AsyncView

T = TypeVar("T")


class AsyncSessionStore:
    """Sessions in Redis, for asyncio.

    Open it with `from_url`, with `embedded`, or on a redis-py client that the caller owns and closes. Use it as a
    context manager, or call `aclose`.

    Parameters
    ----------
    client : redis.asyncio.Redis
        A client of one primary. The store makes connections of its own with the client's address and
        credentials, and none of its time-outs and retries: a write whose answer is lost is never sent again.
    **options
        See `StoreConfig`.
    """

    def __init__(self, client: redis.asyncio.Redis, **options: Unpack[StoreOptions]) -> None:
        config = StoreConfig(**options)
        self._open(pool_like(Pool, client, _settings(config)), config)

    def _open(self, pool: Any, config: StoreConfig) -> Self:
        config.database = database_of(pool)
        self.config = config
        self._closed = False
        #: the one that it is used on
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._connections = Connections(pool, config)
        self._driver = SubscriptionsDriver(pool, config)
        return self

    @classmethod
    def from_url(cls, url: str, *, max_connections: int = MAX_CONNECTIONS, **options: Unpack[StoreOptions]) -> Self:
        """Make a store for ``redis://``, ``rediss://`` or ``unix://``, with password and database.

        It connects when it is used.
        """
        config = StoreConfig(**options)
        pool = pool_from_url(Pool, url, max_connections, _settings(config))
        return cls.__new__(cls)._open(pool, config)

    @classmethod
    def embedded(cls, server: EmbeddedServer | None = None, **options: Unpack[StoreOptions]) -> Self:
        """Make a store in this process's memory, without Redis: for a try and for tests.

        Stores on one `server` share it.
        """
        return cls((server or EmbeddedServer()).async_client(), **options)

    def environment(self, project: str, environment: str) -> AsyncEnvironment:
        """The sessions of one environment; no I/O.

        Raises
        ------
        InvalidSlugError
        """
        return AsyncEnvironment(self, self.config.context(project, environment))

    def project(self, project: str) -> AsyncProject:
        """A project's environments and catalogs; no I/O.

        Raises
        ------
        InvalidSlugError
        """
        return AsyncProject(self, project)

    @property
    def keys(self) -> AsyncApiKeys:
        """The API keys of every project; no I/O."""
        return AsyncApiKeys(self)

    @property
    def connection_pool(self) -> redis.asyncio.ConnectionPool:
        """The store's own connections, for whoever shares its Redis; each has to be given back."""
        pool: redis.asyncio.ConnectionPool = self._connections.pool
        return pool

    async def ping(self) -> None:
        """Make one round trip.

        Raises
        ------
        StoreUnavailableError
        """
        await self._run(operations.ping())

    async def aclose(self) -> None:
        """Close the connections that the store made itself; closing twice is fine."""
        self._closed = True
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            return  # a loop that has ended takes its connections with it
        if self._closing is None:
            self._closing = loop.create_task(self._close(), name="sessionstore-close")
        # Whoever is cancelled here leaves nothing half closed.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._driver.aclose()
        await self._connections.pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, operation: Operation[T]) -> T:
        """Take an operation's steps."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise StoreClosedError("This store belongs to another event loop; open one on each.")
            self._loop = loop
        try:
            step = next(operation)
            while True:
                try:
                    if self._closed:
                        # Also in the midst of it: a closed pool would connect again.
                        raise StoreClosedError(CLOSED)
                    if isinstance(step, AwaitApplied):
                        result: Any = await self._driver.await_applied(step)
                    elif isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                        result = None
                    else:
                        result = await self._connections.execute(step)
                except SessionStoreError as exc:
                    step = operation.throw(closed_error(exc) if self._closed else exc)
                else:
                    step = operation.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value


def _settings(config: StoreConfig) -> dict[str, Any]:
    """Options of the store's connections.

    No socket time-out: the deadline of each call does its work, and redis-py would make a task for each command.
    """
    return {**client_options(config.deadline_s), "socket_timeout": None}


class AsyncEnvironment:
    """The sessions of one environment of one project. Made by `AsyncSessionStore.environment`.

    Every method may raise `InvalidInputError` before anything is sent, `EnvironmentNotFoundError` where the project has
    registered environments and this is none of them, `StoreUnavailableError` where Redis can't serve the call, and
    `OutcomeUnknownError` where a write was sent and no answer came.
    """

    __slots__ = ("_context", "_store")

    def __init__(self, store: AsyncSessionStore, context: WriteContext) -> None:
        self._store = store
        self._context = context

    @property
    def project(self) -> str:
        """The project's slug."""
        return self._context.keyspace.project

    @property
    def name(self) -> str:
        """The environment's slug."""
        return self._context.keyspace.environment

    async def get(self, session_key: str) -> Session | None:
        """Read one session, or None. It does not count as seen."""
        return await self._store._run(operations.get(self._context.keyspace, session_key))

    async def put(
        self,
        session_key: str,
        *,
        label: str | None | UnsetType = UNSET,
        scenario: str | None | UnsetType = UNSET,
        overrides: Iterable[str] | UnsetType = UNSET,
        global_delay_ms: int | None | UnsetType = UNSET,
        global_delay_max_ms: int | None | UnsetType = UNSET,
        if_match: IfMatch | None = None,
        if_none_match: Literal["*"] | None = None,
        wait: bool = True,
    ) -> Session:
        """Set a session's state, all of it or nothing; create the session if it is missing.

        Parameters
        ----------
        session_key : str
            Normalised, see `normalize_session_key`.
        label, scenario, overrides, global_delay_ms, global_delay_max_ms : optional
            Omitted: left unchanged. None: cleared (not for `overrides`, which take ``[]``). See `Session` for bounds.
        if_match : int, sequence of int, or "*"
            Only if the session is at this revision, at one of these, or exists.
        if_none_match : "*"
            Only if the session does not exist.
        wait : bool
            Return when every live view serves the new state; False returns when Redis has committed it.

        Raises
        ------
        PreconditionFailedError
        InvalidOverrideError, InvalidScenarioError
            An id is malformed, or not in the environment's catalog.
        NotEffectiveError
            The write was committed, but whether every view serves it is not known.
        """
        return await self._store._run(
            operations.put(
                self._context,
                time.monotonic,
                session_key,
                label=label,
                scenario=scenario,
                overrides=overrides,
                global_delay_ms=global_delay_ms,
                global_delay_max_ms=global_delay_max_ms,
                if_match=if_match,
                if_none_match=if_none_match,
                wait=wait,
            )
        )

    async def activate(self, session_key: str, override: str, *, wait: bool = True) -> Session:
        """Switch one published mock on; create the session if it is missing.

        Raises
        ------
        OverrideNotFoundError
            The catalog has no such mock.
        InvalidOverrideError
            The id is malformed, the mock is scenario-local, or the session has as many as there can be.
        """
        return await self._store._run(
            operations.activate(self._context, time.monotonic, session_key, override, wait=wait)
        )

    async def deactivate(self, session_key: str, override: str, *, wait: bool = True) -> Session:
        """Switch one published mock off.

        Raises
        ------
        SessionNotFoundError
        OverrideNotFoundError, InvalidOverrideError
            As for `activate`.
        """
        return await self._store._run(
            operations.deactivate(self._context, time.monotonic, session_key, override, wait=wait)
        )

    async def reset(self, session_key: str, *, if_match: IfMatch | None = None, wait: bool = True) -> Session:
        """Clear everything that `put` can set, and keep the session.

        Raises
        ------
        SessionNotFoundError, PreconditionFailedError
        """
        return await self._store._run(
            operations.reset(self._context, time.monotonic, session_key, if_match=if_match, wait=wait)
        )

    async def delete(self, session_key: str, *, if_match: IfMatch | None = None, wait: bool = True) -> Deletion:
        """Remove a session; what it returns is true where there was one.

        Raises
        ------
        PreconditionFailedError
        """
        return await self._store._run(
            operations.delete(self._context, time.monotonic, session_key, if_match=if_match, wait=wait)
        )

    async def list(self, limit: int = 50, cursor: str | None = None) -> SessionPage:
        """Read one page of the live sessions, newest seen first.

        Parameters
        ----------
        limit : int
            1 to 100.
        cursor : str, optional
            `SessionPage.next_cursor` of the page before.

        Raises
        ------
        InvalidQueryError
        """
        return await self._store._run(operations.list_sessions(self._context.keyspace, limit, cursor))

    async def catalog(self) -> Catalog | None:
        """Read what the environment offers; None: it has no catalog, and takes any well-formed id."""
        return await self._store._run(catalog_operations.read(self._context.keyspace))

    async def scenarios(self, limit: int = 50, search: str | None = None, before: str | None = None) -> ScenarioPage:
        """Read one page of the scenarios, by name without regard to case.

        Parameters
        ----------
        limit : int
            1 to 100.
        search : str, optional
            Only scenarios whose name holds this, without regard to case.
        before : str, optional
            `ScenarioPage.next_before` of the page before.

        Raises
        ------
        InvalidQueryError
        """
        return await self._store._run(catalog_operations.list_scenarios(self._context.keyspace, limit, search, before))

    async def touch(self, last_seen_at: Mapping[str, int]) -> int:
        """Note when sessions were last seen, and keep them alive; returns how many of them there were.

        A session that is gone is not revived, ``last_seen_at`` never goes back, and a time in the future counts as now.

        Parameters
        ----------
        last_seen_at : mapping
            Session key → ms since 1970, in Redis time. Sent in batches of 200, each atomic.
        """
        return await self._store._run(operations.touch(self._context, last_seen_at))

    async def views(self) -> tuple[LiveView, ...]:
        """List the views of this environment that hold a lease, in every process; the one that runs out first first."""
        return await self._store._run(operations.views(self._context.keyspace))

    def view(
        self,
        *,
        on_stale: OnStale = "serve",
        wait: bool = True,
        timeout_s: float = DEFAULT_OPEN_TIMEOUT_S,
        touch_interval_s: float = DEFAULT_TOUCH_INTERVAL_S,
    ) -> AsyncView:
        """Make a view: the environment's sessions in local memory, kept right by tasks on the event loop.

        Use it as a context manager. Views of one environment share their memory, and all views of a store share one
        subscription.

        Parameters
        ----------
        on_stale : "serve" or "raise"
            What a look-up does where the view can't prove that it is current: serve what it has, or raise `StaleView`.
        wait : bool
            Opening returns when the view is in touch; False: at once, and it serves nothing until it is.
        timeout_s : float
            Seconds that opening waits.
        touch_interval_s : float
            Seconds between two flushes of what was looked up. ``last_seen_at`` is exact to within it.
        """
        return AsyncView(self._store._driver, self._context, on_stale, wait, timeout_s, touch_interval_s)
