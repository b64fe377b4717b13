"""The API, top-down: the table of routes, then what each does.

A handler takes an `Exchange` and returns a `Reply`, or raises an error that has a code; `app.Boundary` answers errors.
The paths that the router matches are percent-encoded as they were sent, so a session key may hold a slash.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import msgspec
from msgspec import Struct
from starlette.routing import Route

from sessionstore import AsyncEnvironment, AsyncSessionStore, Effect, Session
from sessionstore.errors import InvalidQueryError, SessionNotFoundError
from sessionstore.session import SessionDocument

from .auth import Authenticator
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
    agree,
    check_media_type,
    decode_override_id,
    decode_patch,
    decode_session_key,
    parse_entity_tags,
    parse_limit,
    parse_query,
)
from .limits import RateLimiter

__all__ = ["API", "BASE_PATH", "Resource"]

BASE_PATH = "/api/v1"

#: Sessions of one page of a list, where the call does not say.
DEFAULT_LIMIT = 50

Handler = Callable[[Exchange], Awaitable[Reply]]


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


class API:
    """The handlers, and what they work on."""

    def __init__(
        self, store: AsyncSessionStore, authenticator: Authenticator, limiter: RateLimiter | None = None
    ) -> None:
        self._store = store
        self._authenticator = authenticator
        self._limiter = limiter

    def routes(self) -> list[Route]:
        """Every route there is; `_secured` ones ask for a key."""
        session = f"{BASE_PATH}/sessions/{{sessionKey}}"
        return [
            self._secured(session, GET=self.get_session, PUT=self.put_session, DELETE=self.delete_session),
            self._secured(
                f"{session}/overrides/{{overrideId}}", POST=self.activate_override, DELETE=self.deactivate_override
            ),
            self._secured(f"{BASE_PATH}/sessions", GET=self.list_sessions),
            self._secured(f"{BASE_PATH}/scenarios", GET=self.list_scenarios),
            _open("/healthz", GET=self.healthz),
            _open("/readyz", GET=self.readyz),
        ]

    async def get_session(self, exchange: Exchange) -> Reply:
        """Read a session."""
        query = parse_query(exchange.scope["query_string"], ("project", "environment"))
        known = exchange.header_values(b"if-none-match")
        revisions = () if known is None else parse_entity_tags(known, "If-None-Match", weak=True)
        environment = await self._environment(exchange, query.get("project"), query.get("environment"))
        key = decode_session_key(exchange.path_segment("sessionKey"))
        session = await environment.get(key)
        if session is None:
            raise SessionNotFoundError(
                f"There is no session {key!r} on {environment.project}/{environment.name}; PUT creates it."
            )
        if revisions is None or session.revision in revisions:
            return Reply(304, headers=_etag(session))
        return Reply(200, session.to_json(), _etag(session))

    async def put_session(self, exchange: Exchange) -> Reply:
        """Set a session's state; create it if it is missing."""
        query = parse_query(exchange.scope["query_string"], ("project", "environment"))
        if_match = _if_match(exchange)
        if_none_match = _create_only(exchange)
        check_media_type(exchange.headers.get(b"content-type"))
        patch = decode_patch(await exchange.read_body())
        environment = await self._environment(
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
        return Reply(200, session.to_json(), (*_etag(session), *_effect_headers(session.effect)))

    async def delete_session(self, exchange: Exchange) -> Reply:
        """Reset a session, or remove it."""
        query = parse_query(exchange.scope["query_string"], ("project", "environment", "mode"))
        _refuse(exchange, b"if-none-match", "If-None-Match")
        if_match = _if_match(exchange)
        mode = query.get("mode", "reset")
        if mode not in ("reset", "delete"):
            raise InvalidModeError("mode must be 'reset', which clears the session and keeps it, or 'delete'.")
        environment = await self._environment(exchange, query.get("project"), query.get("environment"))
        key = decode_session_key(exchange.path_segment("sessionKey"))
        if mode == "delete":
            deletion = await environment.delete(key, if_match=if_match, wait=_waits(exchange))
            return Reply(200, _encode(DeletionDocument(True, "delete")), _effect_headers(deletion.effect))
        session = await environment.reset(key, if_match=if_match, wait=_waits(exchange))
        return Reply(200, _encode(DeletionDocument(True, "reset")), _effect_headers(session.effect))

    async def activate_override(self, exchange: Exchange) -> Reply:
        """Switch an override on; create the session if it is missing."""
        environment, key, override = await self._override(exchange)
        session = await environment.activate(key, override, wait=_waits(exchange))
        return Reply(200, _encode(OverrideDocument(override, True)), _effect_headers(session.effect))

    async def deactivate_override(self, exchange: Exchange) -> Reply:
        """Switch an override off."""
        environment, key, override = await self._override(exchange)
        session = await environment.deactivate(key, override, wait=_waits(exchange))
        return Reply(200, _encode(OverrideDocument(override, False)), _effect_headers(session.effect))

    async def list_sessions(self, exchange: Exchange) -> Reply:
        """List the live sessions of an environment, newest seen first."""
        query = parse_query(exchange.scope["query_string"], ("project", "environment", "limit", "cursor"))
        limit = parse_limit(query.get("limit"), DEFAULT_LIMIT)
        environment = await self._environment(exchange, query.get("project"), query.get("environment"))
        page = await environment.list(limit, query.get("cursor"))
        sessions = tuple(session.document() for session in page.sessions)
        return Reply(200, _encode(SessionListDocument(sessions, page.next_cursor)))

    async def list_scenarios(self, exchange: Exchange) -> Reply:
        """List the scenarios of an environment, by name."""
        query = parse_query(exchange.scope["query_string"], ("project", "environment", "limit", "search", "before"))
        limit = parse_limit(query.get("limit"), DEFAULT_LIMIT)
        environment = await self._environment(exchange, query.get("project"), query.get("environment"))
        page = await environment.scenarios(limit, query.get("search"), query.get("before"))
        scenarios = tuple(ScenarioDocument(item.id, item.name, item.url_id) for item in page.scenarios)
        return Reply(200, _encode(ScenarioListDocument(scenarios, page.next_before)))

    async def healthz(self, exchange: Exchange) -> Reply:
        """Say that this process answers."""
        return Reply(200, _encode(StatusDocument("ok")))

    async def readyz(self, exchange: Exchange) -> Reply:
        """Say that Redis can be reached and runs scripts."""
        await self._store.ping()
        return Reply(200, _encode(StatusDocument("ok")))

    async def _override(self, exchange: Exchange) -> tuple[AsyncEnvironment, str, str]:
        """What both calls on an override name."""
        query = parse_query(exchange.scope["query_string"], ("project", "environment"))
        _refuse(exchange, b"if-match", "If-Match")
        _refuse(exchange, b"if-none-match", "If-None-Match")
        environment = await self._environment(exchange, query.get("project"), query.get("environment"))
        key = decode_session_key(exchange.path_segment("sessionKey"))
        return environment, key, decode_override_id(exchange.path_segment("overrideId"))

    async def _environment(self, exchange: Exchange, project: str | None, environment: str | None) -> AsyncEnvironment:
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
        return self._store.environment(project, environment)

    def _secured(self, path: str, **handlers: Handler) -> Route:
        return Route(path, Resource(path, handlers, self._authenticator, self._limiter))


class Resource:
    """The handlers of one path, by method: an ASGI app, as a Starlette Route takes one."""

    def __init__(
        self,
        path: str,
        handlers: Mapping[str, Handler],
        authenticator: Authenticator | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        self._path = path
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers["HEAD"] = handlers["GET"]
        self._allow = ", ".join(sorted(self._handlers))
        self._authenticator = authenticator
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange: Exchange = scope["exchange"]
        exchange.route = self._path
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise MethodNotAllowedError(self._allow)
        if self._authenticator is not None:
            principal = await self._authenticator.authenticate(exchange.headers.get(b"authorization"))
            exchange.principal = principal
            if self._limiter is not None:
                standing = await self._limiter.hit(principal.key_id)
                if standing is not None:
                    exchange.extra_headers = standing.headers()
                    if standing.exceeded:
                        raise RateLimitedError(
                            f"This key has made its {standing.limit.requests} requests of "
                            f"{standing.limit.window_s} seconds; try again in {max(1, standing.reset_s)} seconds."
                        )
        await exchange.answer(await handler(exchange))


async def unknown_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for a path that is no route."""
    raise RouteNotFoundError(
        f"There is no such route; those of the API begin with {BASE_PATH}/sessions. A '/' inside a session key must be "
        "sent as %2F."
    )


def _open(path: str, **handlers: Handler) -> Route:
    return Route(path, Resource(path, handlers))


def _etag(session: Session) -> tuple[tuple[bytes, bytes]]:
    return ((b"etag", b'"%d"' % session.revision),)


def _effect_headers(effect: Effect | None) -> Headers:
    """How a write took effect, for a person who looks at a CI log: a view that holds writes up shows here."""
    assert effect is not None, "the result of a write has an effect"
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
    return prefer is None or not any(
        part.partition(b";")[0].strip().lower() == b"respond-async" for part in prefer.split(b",")
    )


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
