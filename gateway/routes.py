"""The API, top-down: the table of routes, then what each does.

A handler takes an `Exchange` and returns a `Reply`, or raises an error that has a code; `app.Boundary` answers errors.
Above each stands what the API's document says of it (`description`). The paths that the router matches are
percent-encoded as they were sent, so a session key may hold a slash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import msgspec
from msgspec import Struct
from starlette.routing import Route

from sessionstore import AsyncEnvironment, AsyncSessionStore, Effect, Session
from sessionstore.errors import InvalidQueryError, SessionNotFoundError
from sessionstore.session import SessionDocument

from .auth import Authenticator
from .description import Handler, Link, Operation, describe, operation_of
from .errors import (
    EnvironmentRequiredError,
    Headers,
    InvalidModeError,
    MethodNotAllowedError,
    ProjectRequiredError,
    RateLimitedError,
    RouteNotFoundError,
    ScopeMismatchError,
)
from .exchange import Exchange, Receive, Reply, Scope, Send
from .inputs import (
    SessionPatch,
    agree,
    check_media_type,
    decode_override_id,
    decode_patch,
    decode_session_key,
    parse_entity_tags,
    parse_limit,
    parse_query,
    prefers,
)
from .limits import RateLimiter
from .metrics import Metrics
from .openapi import build_document
from .page import PAGE_HEADERS, render_page

__all__ = ["API", "BASE_PATH", "Resource"]

BASE_PATH = "/api/v1"

#: Sessions of one page of a list, where the call does not say.
DEFAULT_LIMIT = 50


class DeletionDocument(Struct, frozen=True):
    """Answer of DELETE on a session."""

    ok: bool
    mode: Literal["reset", "delete"]


class OverrideDocument(Struct, frozen=True, rename="camel"):
    """Answer of POST and DELETE on an override."""

    override_id: str
    active: bool


class SessionListDocument(Struct, frozen=True, rename="camel"):
    """Answer of GET on the sessions of an environment."""

    sessions: tuple[SessionDocument, ...]
    next_cursor: str | None


class ScenarioDocument(Struct, frozen=True, rename="camel"):
    """A scenario as the API shows it."""

    id: str
    name: str
    url_id: str


class ScenarioListDocument(Struct, frozen=True, rename="camel"):
    """Answer of GET on the scenarios of an environment."""

    scenarios: tuple[ScenarioDocument, ...]
    next_before: str | None


class StatusDocument(Struct, frozen=True):
    """Answer of the health checks."""

    status: Literal["ok"]


_PLACE = ("project", "environment")
_EFFECT_HEADERS = ("Server-Timing",)

_SESSION = SessionDocument(
    project="checkout",
    environment="staging",
    session_key="ci-42",
    label="CI run 4821",
    scenario="scn_paymentDeclined",
    overrides=("ovr_extraMock",),
    global_delay_ms=0,
    global_delay_max_ms=0,
    last_seen_at="2026-06-23T12:00:00.000Z",
)

_IN_ANSWER = {
    "path.sessionKey": "$response.body#/sessionKey",
    "query.project": "$response.body#/project",
    "query.environment": "$response.body#/environment",
}
_IN_REQUEST = {
    "path.sessionKey": "$request.path.sessionKey",
    "query.project": "$request.query.project",
    "query.environment": "$request.query.environment",
}
_OVERRIDE_IN_REQUEST = {**_IN_REQUEST, "path.overrideId": "$response.body#/overrideId"}
_SESSION_LINKS = {
    "read": Link("getSession", _IN_ANSWER),
    "changeUnlessChanged": Link("putSession", {**_IN_ANSWER, "header.If-Match": "$response.header.ETag"}),
    "tearDown": Link("deleteSession", _IN_ANSWER),
    "activateOverride": Link("activateOverride", _IN_ANSWER),
    "deactivateOverride": Link("deactivateOverride", _IN_ANSWER),
}


class API:
    """The handlers, and what they work on."""

    def __init__(
        self,
        store: AsyncSessionStore,
        authenticator: Authenticator,
        limiter: RateLimiter | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._authenticator = authenticator
        self._limiter = limiter
        self._metrics = metrics
        self._document = self._page = b""

    def routes(self, *, with_metrics: bool) -> list[Route]:
        """Every route there is; `_secured` ones ask for a key."""
        session = f"{BASE_PATH}/sessions/{{sessionKey}}"
        routes = [
            self._secured(session, GET=self.get_session, PUT=self.put_session, DELETE=self.delete_session),
            self._secured(
                f"{session}/overrides/{{overrideId}}", POST=self.activate_override, DELETE=self.deactivate_override
            ),
            self._secured(f"{BASE_PATH}/sessions", GET=self.list_sessions),
            self._secured(f"{BASE_PATH}/scenarios", GET=self.list_scenarios),
            open_route(f"{BASE_PATH}/openapi.json", GET=self.openapi),
            open_route(f"{BASE_PATH}/docs", GET=self.docs),
            open_route("/healthz", GET=self.healthz),
            open_route("/readyz", GET=self.readyz),
        ]
        if self._metrics is not None and with_metrics:
            routes.append(open_route("/metrics", GET=self._metrics.read_metrics))
        document = build_document(cast("Resource", route.endpoint) for route in routes)
        self._document, self._page = _encode(document), render_page(document)
        return routes

    @describe(
        Operation(
            answer=SessionDocument,
            example=_SESSION,
            query=_PLACE,
            headers=("If-None-Match",),
            answer_headers=("ETag",),
            links=_SESSION_LINKS,
        )
    )
    async def get_session(self, exchange: Exchange) -> Reply:
        """Read a session.

        It does not count as seen.
        """
        known = exchange.header_values(b"if-none-match")
        revisions = () if known is None else parse_entity_tags(known, "If-None-Match", weak=True)
        environment = await self._environment(exchange)
        key = decode_session_key(exchange.path_segment("sessionKey"))
        session = await environment.get(key)
        if session is None:
            raise SessionNotFoundError(
                f"There is no session {key!r} on {environment.project}/{environment.name}; PUT creates it."
            )
        if revisions is None or session.revision in revisions:
            return Reply(304, headers=_etag(session))
        return Reply(200, session.to_json(), _etag(session))

    @describe(
        Operation(
            answer=SessionDocument,
            example=_SESSION,
            query=_PLACE,
            headers=("If-Match", "If-None-Match", "Prefer"),
            body=SessionPatch,
            body_example={
                "label": "CI run 4821",
                "scenario": "scn_paymentDeclined",
                "overrides": ["ovr_extraMock"],
            },
            answer_headers=("ETag", *_EFFECT_HEADERS),
            errors=("invalid_override", "invalid_scenario"),
            links=_SESSION_LINKS,
        )
    )
    async def put_session(self, exchange: Exchange) -> Reply:
        """Set a session's state; create it if it is missing.

        Declarative: a field that is omitted is left unchanged, null clears it, and sending the same again changes
        nothing. The whole call applies, or none of it. Project and environment may also be named in the body. The
        answer comes when every live proxy serves the new state.
        """
        query = exchange.query
        if_match = _if_match(exchange)
        if_none_match = _create_only(exchange)
        check_media_type(exchange.single_header(b"content-type"), exchange.header_values(b"content-encoding"))
        patch = decode_patch(await exchange.read_body())
        environment = await self._resolve(
            exchange,
            agree("project", query.get("project"), patch.project),
            agree("environment", query.get("environment"), patch.environment),
        )
        session = await environment.put(
            decode_session_key(exchange.path_segment("sessionKey")),
            label=patch.label,
            scenario=patch.scenario,
            overrides=patch.overrides,
            global_delay_ms=patch.global_delay_ms,
            global_delay_max_ms=patch.global_delay_max_ms,
            if_match=if_match,
            if_none_match=if_none_match,
            wait=_waits(exchange),
        )
        return Reply(200, session.to_json(), (*_etag(session), *_effect_headers(exchange, session.effect)))

    @describe(
        Operation(
            answer=DeletionDocument,
            example=DeletionDocument(True, "reset"),
            query=(*_PLACE, "mode"),
            headers=("If-Match", "Prefer"),
            answer_headers=_EFFECT_HEADERS,
            errors=("invalid_mode",),
        )
    )
    async def delete_session(self, exchange: Exchange) -> Reply:
        """Reset a session, or remove it.

        To reset clears every field that a PUT can set and keeps the session, which must exist; to delete removes it,
        and is fine where there is none. The answer comes when every live proxy serves the new state.
        """
        _refuse(exchange, b"if-none-match", "If-None-Match")
        if_match = _if_match(exchange)
        mode = exchange.query.get("mode", "reset")
        if mode not in ("reset", "delete"):
            raise InvalidModeError("mode must be 'reset', which clears the session and keeps it, or 'delete'.")
        environment = await self._environment(exchange)
        key = decode_session_key(exchange.path_segment("sessionKey"))
        await exchange.skip_body()
        if mode == "delete":
            deletion = await environment.delete(key, if_match=if_match, wait=_waits(exchange))
            return Reply(200, _encode(DeletionDocument(True, "delete")), _effect_headers(exchange, deletion.effect))
        session = await environment.reset(key, if_match=if_match, wait=_waits(exchange))
        return Reply(200, _encode(DeletionDocument(True, "reset")), _effect_headers(exchange, session.effect))

    @describe(
        Operation(
            answer=OverrideDocument,
            example=OverrideDocument("ovr_extraMock", True),
            query=_PLACE,
            headers=("Prefer",),
            answer_headers=_EFFECT_HEADERS,
            links={
                "deactivate": Link("deactivateOverride", _OVERRIDE_IN_REQUEST),
                "read": Link("getSession", _IN_REQUEST),
            },
        )
    )
    async def activate_override(self, exchange: Exchange) -> Reply:
        """Switch an override on; create the session if it is missing.

        Whatever else is active stays so, and doing it twice is fine.
        """
        environment, key, override = await self._override(exchange)
        session = await environment.activate(key, override, wait=_waits(exchange))
        return Reply(200, _encode(OverrideDocument(override, True)), _effect_headers(exchange, session.effect))

    @describe(
        Operation(
            answer=OverrideDocument,
            example=OverrideDocument("ovr_extraMock", False),
            query=_PLACE,
            headers=("Prefer",),
            answer_headers=_EFFECT_HEADERS,
            links={"activate": Link("activateOverride", _OVERRIDE_IN_REQUEST), "read": Link("getSession", _IN_REQUEST)},
        )
    )
    async def deactivate_override(self, exchange: Exchange) -> Reply:
        """Switch an override off.

        Whatever else is active stays so, and doing it twice is fine. The session must exist.
        """
        environment, key, override = await self._override(exchange)
        session = await environment.deactivate(key, override, wait=_waits(exchange))
        return Reply(200, _encode(OverrideDocument(override, False)), _effect_headers(exchange, session.effect))

    @describe(
        Operation(
            answer=SessionListDocument,
            example=SessionListDocument((_SESSION,), None),
            query=(*_PLACE, "limit", "cursor"),
        )
    )
    async def list_sessions(self, exchange: Exchange) -> Reply:
        """List the live sessions of an environment, newest seen first."""
        query = exchange.query
        limit = parse_limit(query.get("limit"), DEFAULT_LIMIT)
        environment = await self._environment(exchange)
        page = await environment.list(limit, query.get("cursor"))
        sessions = tuple(session.document() for session in page.sessions)
        return Reply(200, _encode(SessionListDocument(sessions, page.next_cursor)))

    @describe(
        Operation(
            answer=ScenarioListDocument,
            example=ScenarioListDocument(
                (ScenarioDocument("scn_paymentDeclined", "Payment declined", "payment-declined"),), None
            ),
            query=(*_PLACE, "limit", "search", "before"),
        )
    )
    async def list_scenarios(self, exchange: Exchange) -> Reply:
        """List the scenarios of an environment, by name.

        So that a pipeline can find their ids.
        """
        query = exchange.query
        limit = parse_limit(query.get("limit"), DEFAULT_LIMIT)
        environment = await self._environment(exchange)
        page = await environment.scenarios(limit, query.get("search"), query.get("before"))
        scenarios = tuple(ScenarioDocument(item.id, item.name, item.url_id) for item in page.scenarios)
        return Reply(200, _encode(ScenarioListDocument(scenarios, page.next_before)))

    @describe(Operation(answer="application/json"))
    async def openapi(self, exchange: Exchange) -> Reply:
        """Describe the API: OpenAPI 3.1."""
        return Reply(200, self._document)

    @describe(Operation(answer="text/html"))
    async def docs(self, exchange: Exchange) -> Reply:
        """Describe the API: a page for people."""
        return Reply(200, self._page, PAGE_HEADERS, b"text/html; charset=utf-8")

    @describe(Operation(answer=StatusDocument, example=StatusDocument("ok")))
    async def healthz(self, exchange: Exchange) -> Reply:
        """Say that this process answers."""
        return Reply(200, _encode(StatusDocument("ok")))

    @describe(Operation(answer=StatusDocument, example=StatusDocument("ok"), errors=("store_unavailable",)))
    async def readyz(self, exchange: Exchange) -> Reply:
        """Say that Redis can be reached and runs scripts."""
        await self._store.ping()
        return Reply(200, _encode(StatusDocument("ok")))

    async def _override(self, exchange: Exchange) -> tuple[AsyncEnvironment, str, str]:
        """What both calls on an override name."""
        _refuse(exchange, b"if-match", "If-Match")
        _refuse(exchange, b"if-none-match", "If-None-Match")
        environment = await self._environment(exchange)
        key = decode_session_key(exchange.path_segment("sessionKey"))
        override = decode_override_id(exchange.path_segment("overrideId"))
        await exchange.skip_body()
        return environment, key, override

    async def _environment(self, exchange: Exchange) -> AsyncEnvironment:
        """The environment that a call's query is about."""
        return await self._resolve(exchange, exchange.query.get("project"), exchange.query.get("environment"))

    async def _resolve(self, exchange: Exchange, project: str | None, environment: str | None) -> AsyncEnvironment:
        """The environment that a call is about; where it names none and the project has one, that one."""
        scope = exchange.principal.project if exchange.principal is not None else None
        if scope is not None:
            if project is not None and project != scope:
                raise ScopeMismatchError(f"This key is for the project {scope!r} only; leave project out.")
            project = scope
        if project is None:
            raise ProjectRequiredError("Name the project, as in ?project=checkout: this key opens every project.")
        if environment is None:
            registered = await self._store.project(project).environments()
            if len(registered) != 1:
                there_are = f"has {', '.join(registered)}" if registered else "has registered none to choose from"
                raise EnvironmentRequiredError(
                    f"Name the environment, as in ?environment=staging: project {project!r} {there_are}."
                )
            environment = registered[0]
        resolved = self._store.environment(project, environment)
        if self._metrics is not None:
            self._metrics.served(self._store, project)
        return resolved

    def _secured(self, path: str, **handlers: Handler) -> Route:
        return Route(path, Resource(path, handlers, self._authenticator, self._limiter))


class Resource:
    """The handlers of one path, by method: an ASGI app, as a Starlette Route takes one.

    Attributes
    ----------
    path : str
        The template.
    handlers : mapping
        By method; HEAD goes wherever GET does.
    secured : bool
        Whether it asks for a key.
    """

    def __init__(
        self,
        path: str,
        handlers: Mapping[str, Handler],
        authenticator: Authenticator | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        self.path = path
        self.handlers = handlers
        self.secured = authenticator is not None
        self._calls = {method: (handler, operation_of(handler).query) for method, handler in handlers.items()}
        if "GET" in handlers:
            self._calls["HEAD"] = self._calls["GET"]
        self._allow = ", ".join(sorted(self._calls))
        self._authenticator = authenticator
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange: Exchange = scope["exchange"]
        exchange.route = self.path
        call = self._calls.get(scope["method"])
        if call is None:
            raise MethodNotAllowedError(self._allow)
        handler, parameters = call
        if self._authenticator is not None:
            principal = await self._authenticator.authenticate(exchange.single_header(b"authorization"))
            exchange.principal = principal
            if self._limiter is not None:
                await _count(self._limiter, principal.key_id, exchange)
            exchange.query = parse_query(scope["query_string"], parameters)
        await exchange.answer(await handler(exchange))


async def _count(limiter: RateLimiter, key_id: str, exchange: Exchange) -> None:
    standing = await limiter.hit(key_id)
    if standing is None:
        return
    exchange.extra_headers = standing.headers()
    if standing.exceeded:
        raise RateLimitedError(
            f"This key has made its {standing.limit.requests} requests of {standing.limit.window_s} seconds; "
            f"try again in {standing.retry_after_s} seconds."
        )


async def unknown_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for a path that is no route."""
    raise RouteNotFoundError(
        f"There is no such route; those of the API begin with {BASE_PATH}/sessions. A '/' inside a session key must be "
        "sent as %2F."
    )


def open_route(path: str, **handlers: Handler) -> Route:
    """A route that asks for no key, and minds no query: what probes send is theirs."""
    return Route(path, Resource(path, handlers))


def _etag(session: Session) -> tuple[tuple[bytes, bytes]]:
    return ((b"etag", b'"%d"' % session.revision),)


def _effect_headers(exchange: Exchange, effect: Effect | None) -> Headers:
    """How a write took effect, for a person who looks at a CI log: a view that holds writes up shows here."""
    assert effect is not None, "the result of a write has an effect"
    exchange.effect = effect
    commit = b"commit;dur=%.2f" % (effect.commit_s * 1000)
    if not effect.waited:
        return ((b"preference-applied", b"respond-async"), (b"server-timing", commit))
    return (
        (b"server-timing", b"%b, effective;dur=%.2f" % (commit, effect.effective_s * 1000)),
        (b"session-views", b"confirmed=%d, expired=%d" % (effect.confirmed, effect.expired)),
    )


def _waits(exchange: Exchange) -> bool:
    """Whether to answer when the write is effective; ``Prefer: respond-async`` (RFC 7240) asks for its commit only."""
    prefer = exchange.header_values(b"prefer")
    return prefer is None or not prefers(prefer, b"respond-async")


def _if_match(exchange: Exchange) -> tuple[int, ...] | Literal["*"] | None:
    value = exchange.header_values(b"if-match")
    if value is None:
        return None
    revisions = parse_entity_tags(value, "If-Match", weak=False)
    return "*" if revisions is None else revisions


def _create_only(exchange: Exchange) -> Literal["*"] | None:
    value = exchange.header_values(b"if-none-match")
    if value is None:
        return None
    if parse_entity_tags(value, "If-None-Match", weak=True) is not None:
        raise InvalidQueryError("On PUT the header If-None-Match takes only *: create the session, never change one.")
    return "*"


def _refuse(exchange: Exchange, name: bytes, shown: str) -> None:
    """Refuse a precondition that the call can't keep: who sends one relies on it."""
    if name in exchange.headers:
        raise InvalidQueryError(f"The header {shown} can't be used here; leave it out.")


_encode = msgspec.json.Encoder().encode
