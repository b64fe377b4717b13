"""The sessions of one environment, for asyncio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Unpack

from ..catalog.model import Catalog, ScenarioPage
from ..errors import InvalidFieldError, InvalidScenarioError
from ..protocol import bulk_operations, calls, catalog_operations, operations, quota_operations
from ..protocol.calls import IfMatch, Terms, WriteContext
from ..protocol.operations import new_id
from ..replica.follower import DEFAULT_TOUCH_INTERVAL_S
from ..replica.view import DEFAULT_OPEN_TIMEOUT_S, OnStale
from ..session import BulkResult, Deletion, LiveView, Session, SessionPage, SessionPatch, SessionProperties, make_patch
from .runner import Runner
from .view import AsyncView


class AsyncEnvironment:
    """The sessions of one environment of one project. Made by `AsyncSessionStore.environment`.

    Every method may raise these errors:

    - `InvalidInputError`, before anything is sent.
    - `EnvironmentNotFoundError`: the project has registered environments, but not this one.
    - `StoreUnavailableError`: Redis can't serve the call.
    - `OutcomeUnknownError`: a write was sent and got no answer.

    Each write takes `views`: how many live views must have reported it themselves, 0 to 1,000. If fewer have, it raises
    `TooFewViewsError`, and the state is set. It waits for no further view, and must not be used with ``wait=False``.

    Each write takes `replicas`: how many replicas of Redis must have it too, 0 to 10, in place of the store's
    `replicas`. If fewer have it in time, it raises `NotDurableError`, and the state is set.
    """

    def __init__(self, runner: Runner, context: WriteContext, actor: str) -> None:
        self._runner = runner
        self._context = context
        self._actor = actor

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
        return await self._runner.run(operations.get(self._context.keyspace, session_key))

    async def put(
        self,
        session_key: str,
        patch: SessionPatch | None = None,
        /,
        *,
        replace: bool = False,
        if_match: IfMatch | None = None,
        if_none_match: Literal["*"] | None = None,
        wait: bool = True,
        views: int = 0,
        replicas: int | None = None,
        **properties: Unpack[SessionProperties],
    ) -> Session:
        """Set a session's state, all of it or nothing; create the session if it is missing.

        Parameters
        ----------
        session_key : str
            Normalised, see `normalize_session_key`.
        patch : SessionPatch, optional
            The properties as one object, instead of `properties`.
        replace : bool
            Clear every property that is omitted, so that nothing of an earlier use of the key remains.
        if_match : int, sequence of int, or "*"
            Only if the session is at this revision, is at one of these, or exists.
        if_none_match : "*"
            Only if the session does not exist.
        wait : bool
            Return when every live view serves the new state; False returns when Redis has committed it.
        **properties
            `label`, `scenario`, `overrides`, `global_delay_ms`, `global_delay_max_ms`, `ttl_seconds`: as in
            `SessionPatch`. A property that is omitted stays as it is, unless `replace`; None clears it.

        Raises
        ------
        InvalidFieldError, InvalidOverrideError, InvalidScenarioError
            A property is out of its bounds, or an id is malformed or not in the environment's catalog.
        PreconditionFailedError
        QuotaExceededError
            The store has a quota, and the write would exceed it.
        NotEffectiveError
            The write was committed, but perhaps not every view serves it.
        """
        if patch is None:
            patch = make_patch(properties)
        elif properties:
            raise InvalidFieldError("put takes a patch or properties, not both; put all of them into the patch.")
        terms = self._terms(wait, views, replicas)
        try:
            call = calls.put(
                self._context,
                new_id(),
                session_key,
                patch,
                replace=replace,
                if_match=if_match,
                if_none_match=if_none_match,
                terms=terms,
            )
        except InvalidScenarioError as exc:
            raise await self._runner.run(operations.suggest(self._context.keyspace, exc)) from None
        return await self._runner.run(quota_operations.write(self._context, call, terms))

    async def activate(
        self, session_key: str, override: str, *, wait: bool = True, views: int = 0, replicas: int | None = None
    ) -> Session:
        """Switch one published mock on; create the session if it is missing.

        Raises
        ------
        OverrideNotFoundError
            The catalog has no such mock.
        InvalidOverrideError
            The id is malformed, the mock is scenario-local, or the session has the most overrides allowed.
        QuotaExceededError
        """
        terms = self._terms(wait, views, replicas)
        call = calls.activate(self._context, new_id(), session_key, override, terms=terms)
        return await self._runner.run(quota_operations.write(self._context, call, terms))

    async def deactivate(
        self, session_key: str, override: str, *, wait: bool = True, views: int = 0, replicas: int | None = None
    ) -> Session:
        """Switch one published mock off.

        Raises
        ------
        SessionNotFoundError
        OverrideNotFoundError, InvalidOverrideError
            As for `activate`.
        """
        terms = self._terms(wait, views, replicas)
        call = calls.deactivate(self._context, new_id(), session_key, override, terms=terms)
        return await self._runner.run(operations.write(self._context, call, terms))

    async def reset(
        self,
        session_key: str,
        *,
        if_match: IfMatch | None = None,
        wait: bool = True,
        views: int = 0,
        replicas: int | None = None,
    ) -> Session:
        """Clear everything that `put` can set, and keep the session.

        Raises
        ------
        SessionNotFoundError, PreconditionFailedError
        """
        terms = self._terms(wait, views, replicas)
        call = calls.reset(self._context, new_id(), session_key, if_match=if_match, terms=terms)
        return await self._runner.run(operations.write(self._context, call, terms))

    async def delete(
        self,
        session_key: str,
        *,
        if_match: IfMatch | None = None,
        wait: bool = True,
        views: int = 0,
        replicas: int | None = None,
    ) -> Deletion:
        """Remove a session. The result is true if the session existed.

        Raises
        ------
        PreconditionFailedError
        """
        terms = self._terms(wait, views, replicas)
        call = calls.delete(self._context, new_id(), session_key, if_match=if_match, terms=terms)
        return await self._runner.run(operations.delete(self._context, call, terms))

    async def delete_prefix(
        self, prefix: str, *, wait: bool = True, views: int = 0, replicas: int | None = None
    ) -> BulkResult:
        """Remove the sessions whose keys begin with `prefix`, byte by byte: at most 1,000 of them in one call.

        Each session changes atomically, but not all of them together. Calling again is safe.

        Raises
        ------
        InvalidQueryError
            `prefix` must have 1 to 200 characters that a session key can begin with.
        OutcomeUnknownError
            Redis failed midway.
        """
        return await self._runner.run(
            bulk_operations.change_prefix(self._context, prefix, "delete", self._terms(wait, views, replicas))
        )

    async def reset_prefix(
        self, prefix: str, *, wait: bool = True, views: int = 0, replicas: int | None = None
    ) -> BulkResult:
        """Reset the sessions whose keys begin with `prefix`, as `delete_prefix` removes them.

        Sessions with nothing to clear are left as they are, and not counted.
        """
        return await self._runner.run(
            bulk_operations.change_prefix(self._context, prefix, "reset", self._terms(wait, views, replicas))
        )

    async def list(self, limit: int = 50, cursor: str | None = None, prefix: str | None = None) -> SessionPage:
        """Read one page of the live sessions, newest seen first.

        Parameters
        ----------
        limit : int
            1 to 100.
        cursor : str, optional
            `SessionPage.next_cursor` of the previous page.
        prefix : str, optional
            Only sessions whose keys begin with this, byte by byte: 1 to 200 characters.

        Raises
        ------
        InvalidQueryError
        """
        return await self._runner.run(operations.list_sessions(self._context.keyspace, limit, cursor, prefix))

    async def catalog(self) -> Catalog | None:
        """Read the environment's catalog. Without one (None), it accepts any well-formed id."""
        return await self._runner.run(catalog_operations.read(self._context.keyspace))

    async def scenarios(self, limit: int = 50, search: str | None = None, before: str | None = None) -> ScenarioPage:
        """Read one page of the scenarios, by name without regard to case.

        Parameters
        ----------
        limit : int
            1 to 100.
        search : str, optional
            Only scenarios whose name contains this text, without regard to case.
        before : str, optional
            `ScenarioPage.next_before` of the previous page.

        Raises
        ------
        InvalidQueryError
        """
        return await self._runner.run(catalog_operations.list_scenarios(self._context.keyspace, limit, search, before))

    async def touch(self, last_seen_at: Mapping[str, int]) -> int:
        """Record when sessions were last seen, and keep them alive; returns how many of them exist.

        This revives no expired session. ``last_seen_at`` never goes back, and a time in the future counts as now.

        Parameters
        ----------
        last_seen_at : mapping
            Session key → ms since 1970, in Redis time. Sent in batches of 200, each atomic.
        """
        return await self._runner.run(operations.touch(self._context, last_seen_at))

    async def views(self) -> tuple[LiveView, ...]:
        """List the views of this environment that hold a lease, in every process, in the order of their expiry."""
        return await self._runner.run(operations.views(self._context.keyspace))

    def _terms(self, wait: bool, views: int, replicas: int | None) -> Terms:
        return Terms(wait, views, self._actor, self._runner.config.replicas if replicas is None else replicas)

    def view(
        self,
        *,
        on_stale: OnStale = "serve",
        wait: bool = True,
        timeout_s: float = DEFAULT_OPEN_TIMEOUT_S,
        touch_interval_s: float = DEFAULT_TOUCH_INTERVAL_S,
    ) -> AsyncView:
        """Make a view: the environment's sessions in local memory, kept up to date by tasks on the event loop.

        Use it as a context manager. Views of one environment share their memory, and all views of a store share one
        subscription.

        Parameters
        ----------
        on_stale : "serve" or "raise"
            What a look-up does while the view is not fresh: serve what the view has, or raise `StaleView`.
        wait : bool
            Opening returns when the view is fresh. False: it returns at once, and the view is empty at first.
        timeout_s : float
            Seconds that opening waits.
        touch_interval_s : float
            Seconds between two flushes of touches: the precision of ``last_seen_at``.
        """
        return AsyncView(self._runner, self._context, on_stale, wait, timeout_s, touch_interval_s)
