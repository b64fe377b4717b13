"""The HTTP client for asyncio."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack

import httpx
from msgspec.structs import replace as replaced

from ..catalog.model import ScenarioPage
from ..errors import (
    InvalidFieldError,
    InvalidSessionKeyError,
    NotDurableError,
    NotEffectiveError,
    OutcomeUnknownError,
    SessionStoreError,
    StoreClosedError,
    TooFewViewsError,
)
from ..protocol.calls import IfMatch
from ..session import (
    SESSION_HEADER,
    BulkResult,
    Effect,
    Session,
    SessionPage,
    SessionPatch,
    SessionProperties,
    ViewListDocument,
    make_patch,
    shorten_session_key,
    validate_session_key,
)
from .calls import Answer, Call, SessionCalls, WriteTerms
from .failures import Failure, Retry, lost_answer, read_answer
from .settings import DEFAULT_RETRY_FOR_S, DEFAULT_TIMEOUT_S, read_settings

T = TypeVar("T")

#: Errors after which a session may have been set.
_PERHAPS_SET = (OutcomeUnknownError, NotEffectiveError, TooFewViewsError, NotDurableError)
#: Failures before the request leaves.
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class AsyncSessionClient:
    """The sessions of one environment, over HTTP, for asyncio. It belongs to the event loop that it is first used on.

    Use it as a context manager, or call `aclose`. Errors are the library's: `code` is the API's.

    The client repeats a call for up to `retry_for_s` if the gateway asks for it (429, 503) or does not answer, and for
    5 seconds if the gateway can't be reached. It never repeats a call that too few views confirmed or too few replicas
    have, nor one with a precondition that may have been applied.

    Parameters
    ----------
    url : str, optional
        Of the gateway, as in ``http://localhost:8080``; else `SESSIONSTORE_URL`.
    api_key : str, optional
        ``fmk_…``; else `SESSIONSTORE_API_KEY`.
    project : str, optional
        Else `SESSIONSTORE_PROJECT`, else the one project that the key is for.
    environment : str, optional
        Else `SESSIONSTORE_ENVIRONMENT`, else the only one that the project has registered.
    timeout_s : float
        Seconds that the gateway may take to connect and to answer: 0.05 to 3,600.
    retry_for_s : float
        Seconds within which the client repeats a call: 0 to 3,600. It does not wait for a longer ``Retry-After``.
    transport : httpx.AsyncBaseTransport, optional
        Sends the requests in place of httpx's own.

    Raises
    ------
    InvalidInputError
        The URL or the key is missing, or something is invalid.

    Every method may raise `InvalidInputError` for what the gateway refuses, `AccessDeniedError` for the key,
    `NotFoundError` for an environment that is not registered, `RateLimitedError`, `StoreUnavailableError`, and
    `OutcomeUnknownError` if a write was sent and no answer came.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        project: str | None = None,
        environment: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_for_s: float = DEFAULT_RETRY_FOR_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = read_settings(url, api_key, project, environment, timeout_s, retry_for_s)
        self._calls = SessionCalls(settings.project, settings.environment)
        self._gateway = f"The gateway at {settings.url}"
        self._retry_for_s = settings.retry_for_s
        self._process = os.getpid()
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers=settings.headers(),
            timeout=settings.timeout_s,
            transport=transport,
            # Loading the certificates takes as long as some fifty calls.
            verify=settings.url.lower().startswith("https:"),
        )

    def session(
        self,
        session_key: str,
        patch: SessionPatch | None = None,
        /,
        *,
        views: int = 0,
        **properties: Unpack[SessionProperties],
    ) -> AsyncMockSession:
        """Set a session, and delete it at the end.

        ::

            async with client.session("ci-42", scenario="scn_paymentDeclined") as session:
                await http.get("http://localhost:8081/pay", headers=session.headers)

        Nothing of an earlier session with this key remains.

        Parameters
        ----------
        session_key : str
            A key that is too long is shortened, see `shorten_session_key`.
        patch, **properties
            As for `put`.
        views : int
            For this and each further write of the session, as for `put`.
        """
        return AsyncMockSession(self, session_key, _patch_of(patch, properties), views)

    async def get(self, session_key: str) -> Session:
        """Read a session. It does not count as seen.

        Raises
        ------
        NotFoundError
            There is no such session, or no such environment.
        """
        return await self._run(self._calls.get(session_key))

    async def put(
        self,
        session_key: str,
        patch: SessionPatch | None = None,
        /,
        *,
        replace: bool = False,
        if_match: IfMatch | None = None,
        if_none_match: Literal["*"] | None = None,
        views: int = 0,
        wait: bool = True,
        replicas: int | None = None,
        **properties: Unpack[SessionProperties],
    ) -> Session:
        """Set a session's state, all of it or nothing; create the session if it is missing.

        Parameters
        ----------
        session_key : str
            A key that is too long is shortened, see `shorten_session_key`.
        patch, **properties
            As for `Environment.put`: what is omitted stays as it is.
        replace : bool
            Clear what is omitted, so that the session is exactly this.
        if_match : int, sequence of int, or "*"
            Only if the session is at this revision, at one of these, or exists.
        if_none_match : "*"
            Only if the session does not exist.
        views : int
            Live views that must confirm the write.
        wait : bool
            Return when every live view serves the new state; False returns when Redis has committed it.
        replicas : int, optional
            Replicas of Redis that must have the write, 0 to 10, in place of the gateway's own number.

        Raises
        ------
        PreconditionFailedError
        TooFewViewsError
            The state is set, and fewer views confirmed it.
        NotDurableError
            The state is set, and fewer replicas have it.
        """
        return await self._run(
            self._calls.put(
                session_key,
                _patch_of(patch, properties),
                replace=replace,
                if_match=if_match,
                if_none_match=if_none_match,
                views=views,
                wait=wait,
                replicas=replicas,
            )
        )

    async def activate(self, session_key: str, override: str, **terms: Unpack[WriteTerms]) -> Effect:
        """Switch one published mock on; create the session if it is missing. Parameters as for `put`.

        Raises
        ------
        NotFoundError
            The catalog has no such mock.
        TooFewViewsError
        """
        return await self._run(self._calls.switch(session_key, override, True, **terms))

    async def deactivate(self, session_key: str, override: str, **terms: Unpack[WriteTerms]) -> Effect:
        """Switch one published mock off. Parameters as for `put`.

        Raises
        ------
        NotFoundError
            There is no such session, or the catalog has no such mock.
        TooFewViewsError
        """
        return await self._run(self._calls.switch(session_key, override, False, **terms))

    async def reset(self, session_key: str, *, if_match: IfMatch | None = None, **terms: Unpack[WriteTerms]) -> Effect:
        """Clear everything that `put` can set, and keep the session. Parameters as for `put`.

        Raises
        ------
        NotFoundError, PreconditionFailedError, TooFewViewsError
        """
        return await self._run(self._calls.end(session_key, "reset", if_match=if_match, **terms))

    async def delete(self, session_key: str, *, if_match: IfMatch | None = None, **terms: Unpack[WriteTerms]) -> Effect:
        """Remove a session, if there is one. Parameters as for `put`.

        Raises
        ------
        PreconditionFailedError, TooFewViewsError
        """
        return await self._run(self._calls.end(session_key, "delete", if_match=if_match, **terms))

    async def delete_prefix(self, prefix: str, **terms: Unpack[WriteTerms]) -> BulkResult:
        """Remove the sessions whose keys begin with `prefix`, byte by byte: at most 1,000 of them in one call.

        Each session changes atomically, but not all of them together. Other parameters as for `put`.

        Raises
        ------
        InvalidQueryError
            `prefix` must have 1 to 200 characters that a session key can begin with.
        """
        return await self._run(self._calls.end_prefix(prefix, "delete", **terms))

    async def reset_prefix(self, prefix: str, **terms: Unpack[WriteTerms]) -> BulkResult:
        """Reset the sessions whose keys begin with `prefix`, as `delete_prefix` removes them."""
        return await self._run(self._calls.end_prefix(prefix, "reset", **terms))

    async def list(self, limit: int = 50, cursor: str | None = None, prefix: str | None = None) -> SessionPage:
        """Read one page of the live sessions, newest seen first; it may be short or empty and still not be the last.

        Parameters
        ----------
        limit : int
            1 to 100.
        cursor : str, optional
            `SessionPage.next_cursor` of the page before.
        prefix : str, optional
            Only sessions whose keys begin with this, byte by byte: 1 to 200 characters.
        """
        return await self._run(self._calls.list(limit, cursor, prefix))

    async def scenarios(self, limit: int = 50, search: str | None = None, before: str | None = None) -> ScenarioPage:
        """Read one page of the environment's scenarios, by name; `mocks` and `local_mocks` of each are empty.

        Parameters
        ----------
        limit : int
            1 to 100.
        search : str, optional
            Only scenarios whose name holds this, without regard to case.
        before : str, optional
            `ScenarioPage.next_before` of the page before.
        """
        return await self._run(self._calls.scenarios(limit, search, before))

    async def views(self) -> ViewListDocument:
        """Read the environment's live views: the proxies that a write waits for.

        Returns
        -------
        ViewListDocument
            Its `elsewhere` maps the project's other environments that have live views to their number.
        """
        return await self._run(self._calls.views())

    async def aclose(self) -> None:
        """Close all connections; closing twice is fine."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, call: Call[T], retry_for_s: float | None = None) -> T:
        if self._http.is_closed or os.getpid() != self._process:
            raise StoreClosedError(
                "This client is closed, or belongs to the process that forked this one; make another."
            )
        retry = Retry(self._retry_for_s if retry_for_s is None else retry_for_s)
        while True:
            try:
                response = await self._http.request(
                    call.method, call.path, params=call.query, headers=call.headers, content=call.content
                )
            except httpx.RequestError as exc:
                outcome: T | Failure = lost_answer(call, exc, self._gateway, sent=not isinstance(exc, _UNSENT))
            else:
                answer = Answer(response.status_code, response.headers, response.content)
                outcome = read_answer(call, answer, self._gateway)
            if not isinstance(outcome, Failure):
                return outcome
            await asyncio.sleep(retry.pause_s(outcome))


class AsyncMockSession:
    """One session as a context manager. Made by `AsyncSessionClient.session`.

    Attributes
    ----------
    key : str
        The session's key, in its normal form.
    state : Session or None
        What this object set last; None before it is entered. After `on` or `off` its revision is 0, because the API
        returns none. `get` reads the current state.
    effects : list of Effect
        How each write took effect.
    """

    def __init__(self, client: AsyncSessionClient, session_key: str, patch: SessionPatch, views: int) -> None:
        self.key = validate_session_key(session_key, shorten_session_key)
        self.state: Session | None = None
        self.effects: list[Effect] = []
        self._client = client
        self._patch = patch
        self._views = views

    @property
    def headers(self) -> dict[str, str]:
        """The header that a request to the proxy needs.

        Raises
        ------
        InvalidSessionKeyError
            HTTP libraries differ in how they send a key that is not ASCII.
        """
        if not self.key.isascii():
            raise InvalidSessionKeyError(
                "A session key in a header must be ASCII; use another, or send its UTF-8 bytes."
            )
        return {SESSION_HEADER: self.key}

    async def put(self, patch: SessionPatch | None = None, /, **properties: Unpack[SessionProperties]) -> Session:
        """Change the session; what is omitted stays as it is. See `AsyncSessionClient.put`."""
        return self._set(await self._client.put(self.key, _patch_of(patch, properties), views=self._views))

    async def on(self, override: str) -> None:
        """Switch one published mock on. See `AsyncSessionClient.activate`."""
        self._switched(override, True, await self._client.activate(self.key, override, views=self._views))

    async def off(self, override: str) -> None:
        """Switch one published mock off. See `AsyncSessionClient.deactivate`."""
        self._switched(override, False, await self._client.deactivate(self.key, override, views=self._views))

    async def get(self) -> Session:
        """Read the session as it is now. See `AsyncSessionClient.get`."""
        return await self._client.get(self.key)

    def _set(self, session: Session) -> Session:
        assert session.effect is not None, "the result of a write has an effect"
        self.state = session
        self.effects.append(session.effect)
        return session

    def _switched(self, override: str, on: bool, effect: Effect) -> None:
        self.effects.append(effect)
        if self.state is not None:
            others = tuple(id_ for id_ in self.state.overrides if id_ != override)
            active = self.state.overrides if override in self.state.overrides else (*others, override)
            self.state = replaced(self.state, overrides=active if on else others, revision=0, effect=effect)

    async def __aenter__(self) -> Self:
        try:
            self._set(await self._client.put(self.key, self._patch, replace=True, views=self._views))
        except BaseException as exc:
            # An interrupt or a lost answer may leave a session; the gateway's other errors mean that nothing was set.
            if isinstance(exc, _PERHAPS_SET) or not isinstance(exc, SessionStoreError):
                await self._abandon(exc)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self._client.delete(self.key)
        else:
            await self._abandon(error)

    async def _abandon(self, error: BaseException) -> None:
        """Try once to delete the session. If that fails, add a note to the first error, which stays."""
        call = self._client._calls.end(self.key, "delete", if_match=None, views=0, wait=True, replicas=None)
        try:
            await self._client._run(call, retry_for_s=0.0)
        except SessionStoreError as exc:
            error.add_note(f"The session {self.key!r} may remain until it expires: {exc}")


def _patch_of(patch: SessionPatch | None, properties: SessionProperties) -> SessionPatch:
    if patch is None:
        return make_patch(properties)
    if properties:
        raise InvalidFieldError("Give a patch or properties, not both; put all of them into the patch.")
    return patch
