"""The API, top-down: the table of routes, then the handler of each call.

A handler takes Starlette's `Request` and returns a `Response`, or raises an error that has a code; `app` answers
errors. Above each handler stands its `Operation`, which the router and the API's document follow. Routes match the path
as it was sent, percent-encoded, so a session key may hold a slash.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Annotated, Literal, TypedDict, TypeVar
from urllib.parse import quote, unquote

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sessionstore import AsyncEnvironment, AsyncSessionStore, Deletion, Effect, Session
from sessionstore.errors import (
    InvalidQueryError,
    NotDurableError,
    SessionNotFoundError,
    StoreUnavailableError,
    TooFewViewsError,
)
from sessionstore.protocol.bulk_operations import MAX_CHANGED
from sessionstore.session import (
    SessionDetails,
    SessionDocument,
    SessionEntry,
    ViewDocument,
    ViewListDocument,
    format_time,
    normalize_session_key,
)
from sessionstore.transport.topology import Cluster

from . import inputs
from .auth import Authenticator
from .description import Handler, Operation, Resource, operation_of
from .errors import RequestError
from .limits import RateLimiter
from .metrics import Metrics
from .openapi import build_document
from .record import Record, Write, record_of
from .waits import Waits

BASE_PATH = "/api/v1"

T = TypeVar("T")
Removal = Literal["reset", "delete"]
_Writing = Callable[..., Awaitable[T]]
_Remove = Callable[..., Awaitable[Session | Deletion]]


class DeletionDocument(Struct, frozen=True):
    """Answer of DELETE on a session."""

    ok: bool
    mode: Removal


class BulkDocument(Struct, frozen=True):
    """Answer of DELETE on the sessions whose keys begin alike."""

    ok: bool
    mode: Removal
    count: Annotated[int, Meta(description="Sessions that the call changed.", ge=0, le=MAX_CHANGED)]
    more: Annotated[bool, Meta(description="Whether there are more to change; send the call again.")]


class OverrideDocument(Struct, frozen=True, rename="camel"):
    """Answer of POST and DELETE on an override."""

    override_id: str
    active: bool


class SessionListDocument(Struct, frozen=True, rename="camel"):
    """Answer of GET on the sessions of an environment."""

    sessions: tuple[SessionEntry, ...]
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


class IndexDocument(Struct, frozen=True):
    """Answer of the gateway's bare address."""

    api: str
    document: str


class StatusDocument(Struct, frozen=True):
    """Answer of the health checks."""

    status: Literal["ok"]


_PLACE = ("project", "environment")


@dataclass
class API:
    """The handlers of all calls."""

    store: AsyncSessionStore
    authenticator: Authenticator
    limiter: RateLimiter | None
    metrics: Metrics
    resources: Sequence[Resource] = ()
    waits: Waits = field(default_factory=Waits)

    @cached_property
    def document(self) -> bytes:
        """The API's document. Making it takes longer than making the app."""
        return _encode(build_document(self.resources, int(self.store.config.ttl_s)))

    def routes(self, *, with_metrics: bool) -> list[Route]:
        """Build all routes; `_secured` ones ask for a key."""
        session = f"{BASE_PATH}/sessions/{{sessionKey}}"
        endpoints = [
            self._secured(session, GET=self.get_session, PUT=self.put_session, DELETE=self.delete_session),
            self._secured(
                f"{session}/overrides/{{overrideId}}", POST=self.activate_override, DELETE=self.deactivate_override
            ),
            self._secured(f"{BASE_PATH}/sessions", GET=self.list_sessions, DELETE=self.delete_sessions),
            self._secured(f"{BASE_PATH}/scenarios", GET=self.list_scenarios),
            self._secured(f"{BASE_PATH}/views", GET=self.list_views),
            open_endpoint(f"{BASE_PATH}/openapi.json", GET=self.openapi),
            open_endpoint("/", GET=self.index),
            open_endpoint("/healthz", GET=self.healthz),
            open_endpoint("/readyz", GET=self.readyz),
        ]
        if with_metrics:
            endpoints.append(open_endpoint("/metrics", GET=self.metrics.read_metrics))
        self.resources = [endpoint.resource for endpoint in endpoints]
        return [endpoint.route() for endpoint in endpoints]

    @Operation(answer=SessionDocument, query=_PLACE, headers=("If-None-Match",))
    async def get_session(self, request: Request) -> Response:
        """Read a session.

        Reading does not count as seeing it.
        """
        known = _entity_tags(request, "If-None-Match", weak=True)
        environment = await self._environment(request)
        key = _session_key(request)
        session = await environment.get(key)
        if session is None:
            raise SessionNotFoundError(
                f"There is no session {key!r} on {environment.project}/{environment.name}; PUT creates it."
            )
        if known is not None and (known == "*" or session.revision in known):
            return Response(status_code=304, headers=_session_headers(session))
        return _answer(session.document(), _session_headers(session))

    @Operation(
        answer=SessionDocument,
        query=(*_PLACE, "mode", "views", "replicas"),
        headers=("If-Match", "If-None-Match", "Prefer"),
        body=inputs.SessionBody,
        example={
            "label": "CI run 4821",
            "scenario": "scn_paymentDeclined",
            "overrides": ["ovr_extraMock"],
        },
        errors=("quota_exceeded",),
    )
    async def put_session(self, request: Request) -> Response:
        """Set a session's state; create it if it is missing.

        Declarative: an omitted field is left unchanged, or cleared with `mode=replace`; null clears it; and sending the
        same again changes nothing. The whole call applies, or none of it. The body may also name project and
        environment. The answer comes when every live proxy serves the new state.
        """
        query = record_of(request).query
        mode = _mode(request, ("merge", "replace"), default="merge")
        if_match = _entity_tags(request, "If-Match", weak=False)
        if_none_match = _entity_tags(request, "If-None-Match", weak=True)
        if isinstance(if_none_match, tuple):
            raise InvalidQueryError(
                "On PUT the header If-None-Match takes only *: create the session, never change one."
            )
        inputs.check_media_type(_header(request, "content-type"), _header(request, "content-encoding"))
        body = inputs.decode_body(await inputs.read_body(request, _header(request, "content-length") or ""))
        environment = await self._resolve(
            request,
            inputs.agree("project", query.get("project"), body.project),
            inputs.agree("environment", query.get("environment"), body.environment),
        )
        key = _session_key(request)
        put = partial(
            environment.put, key, body, replace=mode == "replace", if_match=if_match, if_none_match=if_none_match
        )
        session = await self._write(request, "put", environment, normalize_session_key(key), put)
        return _answer(session.document(), {**_session_headers(session), **_effect_headers(request, session.effect)})

    @Operation(answer=DeletionDocument, query=(*_PLACE, "mode", "views", "replicas"), headers=("If-Match", "Prefer"))
    async def delete_session(self, request: Request) -> Response:
        """Reset a session, or remove it.

        Reset clears every field that a PUT can set and keeps the session, which must exist. Delete removes the session
        and succeeds if there is none. The answer comes when every live proxy serves the new state.
        """
        _refuse(request, "If-None-Match")
        if_match = _entity_tags(request, "If-Match", weak=False)
        mode: Removal = _mode(request, ("reset", "delete"), default="reset")
        environment = await self._environment(request)
        key = _session_key(request)
        await inputs.skip_body(request)
        remove: _Remove = environment.delete if mode == "delete" else environment.reset
        write = partial(remove, key, if_match=if_match)
        removed = await self._write(request, mode, environment, normalize_session_key(key), write)
        return _answer(DeletionDocument(True, mode), _effect_headers(request, removed.effect))

    @Operation(
        answer=OverrideDocument,
        query=(*_PLACE, "views", "replicas"),
        headers=("Prefer",),
        errors=("quota_exceeded",),
    )
    async def activate_override(self, request: Request) -> Response:
        """Switch an override on; create the session if it is missing.

        Other overrides stay active. Repeating the call changes nothing.
        """
        return await self._switch(request, "activate")

    @Operation(answer=OverrideDocument, query=(*_PLACE, "views", "replicas"), headers=("Prefer",))
    async def deactivate_override(self, request: Request) -> Response:
        """Switch an override off.

        Other overrides stay active. Repeating the call changes nothing. The session must exist.
        """
        return await self._switch(request, "deactivate")

    @Operation(answer=SessionListDocument, query=(*_PLACE, "limit", "cursor", "prefix"))
    async def list_sessions(self, request: Request) -> Response:
        """List the live sessions of an environment, newest seen first."""
        query = record_of(request).query
        limit = inputs.parse_number(query.get("limit"), inputs.DEFAULT_PAGE)
        environment = await self._environment(request)
        page = await environment.list(limit, query.get("cursor"), query.get("prefix"))
        record_of(request).corrupt = page.corrupt
        sessions = tuple(session.entry() for session in page.sessions)
        return _answer(SessionListDocument(sessions, page.next_cursor))

    @Operation(answer=BulkDocument, query=(*_PLACE, "prefix", "mode", "views", "replicas"), headers=("Prefer",))
    async def delete_sessions(self, request: Request) -> Response:
        """Reset or remove the sessions whose keys begin alike.

        At most 1,000 in one call. Each session changes atomically, but not all of them together; sending the call again
        is safe. The answer comes when every live proxy serves the new state.
        """
        _refuse(request, "If-Match")
        _refuse(request, "If-None-Match")
        prefix = record_of(request).query.get("prefix", "")
        mode: Removal = _mode(request, ("reset", "delete"), default=None)
        environment = await self._environment(request)
        await inputs.skip_body(request)
        remove = partial(environment.delete_prefix if mode == "delete" else environment.reset_prefix, prefix)
        result = await self._write(request, f"{mode} prefix", environment, prefix, remove)
        document = BulkDocument(True, mode, result.count, result.more)
        return _answer(document, _effect_headers(request, result.effect))

    @Operation(answer=ScenarioListDocument, query=(*_PLACE, "limit", "search", "before"))
    async def list_scenarios(self, request: Request) -> Response:
        """List the scenarios of an environment, by name.

        A pipeline finds their ids here.
        """
        query = record_of(request).query
        limit = inputs.parse_number(query.get("limit"), inputs.DEFAULT_PAGE)
        environment = await self._environment(request)
        page = await environment.scenarios(limit, query.get("search"), query.get("before"))
        scenarios = tuple(ScenarioDocument(item.id, item.name, item.url_id) for item in page.scenarios)
        return _answer(ScenarioListDocument(scenarios, page.next_before))

    @Operation(answer=ViewListDocument, query=_PLACE)
    async def list_views(self, request: Request) -> Response:
        """List the live views of an environment: the proxies that a write waits for.

        If there is none, a proxy may run on another environment of the project.
        """
        environment = await self._environment(request)
        live = await self.store.project(environment.project).live_views(environment.name)
        views = tuple(
            ViewDocument(view.host, view.pid, view.version, view.applied_revision, view.lease_left_ms)
            for view in live.views
        )
        return _answer(ViewListDocument(live.revision, views, live.elsewhere))

    @Operation(answer="application/json")
    async def openapi(self, request: Request) -> Response:
        """Describe the API: OpenAPI 3.1."""
        return _answer(msgspec.Raw(self.document))

    @Operation(answer=IndexDocument)
    async def index(self, request: Request) -> Response:
        """Lead to the API and to its document."""
        return _answer(IndexDocument(BASE_PATH, f"{BASE_PATH}/openapi.json"))

    @Operation(answer=StatusDocument)
    async def healthz(self, request: Request) -> Response:
        """Report that this process answers."""
        return _answer(StatusDocument("ok"))

    @Operation(answer=StatusDocument, errors=("store_unavailable",))
    async def readyz(self, request: Request) -> Response:
        """Report that Redis answers and runs scripts.

        On a cluster, one shard that answers is enough.
        """
        try:
            await self.store.ping()
        except StoreUnavailableError:
            if not isinstance(self.store.site, Cluster):
                raise
            # It asks another primary.
            await self.store.ping()
        return _answer(StatusDocument("ok"))

    async def _switch(self, request: Request, operation: Literal["activate", "deactivate"]) -> Response:
        """Switch an override on or off."""
        _refuse(request, "If-Match")
        _refuse(request, "If-None-Match")
        environment = await self._environment(request)
        key = _session_key(request)
        override = unquote(request.path_params["overrideId"])
        await inputs.skip_body(request)
        active = operation == "activate"
        switch = partial(environment.activate if active else environment.deactivate, key, override)
        session = await self._write(request, operation, environment, normalize_session_key(key), switch)
        return _answer(OverrideDocument(override, active), _effect_headers(request, session.effect))

    async def _environment(self, request: Request) -> AsyncEnvironment:
        """Find the environment that a call's query names."""
        query = record_of(request).query
        return await self._resolve(request, query.get("project"), query.get("environment"))

    async def _resolve(self, request: Request, project: str | None, environment: str | None) -> AsyncEnvironment:
        """Find the environment of a call; without a name, the only one that the project has registered."""
        api_key = record_of(request).api_key
        assert api_key is not None, "a call on an environment has a key"
        scope = api_key.project
        if scope is not None:
            if project is not None and project != scope:
                raise RequestError("scope_mismatch", f"This key is for the project {scope!r} only; leave project out.")
            project = scope
        if project is None:
            raise RequestError(
                "project_required", "Name the project, as in ?project=checkout: this key opens every project."
            )
        if environment is None:
            registered = await self.store.project(project).environments()
            if len(registered) != 1:
                choice = f"has {', '.join(registered)}" if registered else "has registered none to choose from"
                raise RequestError(
                    "environment_required",
                    f"Name the environment, as in ?environment=staging: project {project!r} {choice}.",
                )
            environment = registered[0]
        resolved = self.store.environment(project, environment, actor=f"{api_key.name} ({api_key.id})")
        self.metrics.served(self.store, project)
        return resolved

    async def _write(
        self, request: Request, operation: str, environment: AsyncEnvironment, key: str, write: _Writing[T]
    ) -> T:
        """Record a write for the audit log, and send it; a client that disconnects ends the wait."""
        record_of(request).write = Write(operation, environment.project, environment.name, key)
        return await self.waits.while_connected(request, write(**_terms(request)))

    def _secured(self, path: str, **handlers: Handler) -> Endpoint:
        return Endpoint(Resource(path, handlers, True), self.authenticator, self.limiter)


def open_endpoint(path: str, **handlers: Handler) -> Endpoint:
    """Make a path that asks for no key and ignores the query, because probes may send any query."""
    return Endpoint(Resource(path, handlers, False))


class Endpoint:
    """Serves the calls of one path; HEAD works wherever GET does."""

    def __init__(
        self, resource: Resource, authenticator: Authenticator | None = None, limiter: RateLimiter | None = None
    ) -> None:
        self.resource = resource
        self._calls = {method: (call, operation_of(call).query) for method, call in resource.handlers.items()}
        if "GET" in self._calls:
            self._calls["HEAD"] = self._calls["GET"]
        self._allow = ", ".join(sorted(self._calls))
        self._authenticator = authenticator
        self._limiter = limiter

    def route(self) -> Route:
        """Make the route of this path, for Starlette."""
        return Route(self.resource.path, self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive)
        record = record_of(request)
        record.route = self.resource.path
        if request.method not in self._calls:
            sentence = f"This route takes {self._allow} only."
            raise RequestError("method_not_allowed", sentence, {"allow": self._allow})
        handler, parameters = self._calls[request.method]
        if self._authenticator is not None:
            record.api_key = await self._authenticator.authenticate(_header(request, "authorization"))
            if self._limiter is not None:
                await _count(self._limiter, record)
            record.query = inputs.parse_query(scope["query_string"], parameters)
        response = await handler(request)
        await response(scope, receive, send)


async def _count(limiter: RateLimiter, record: Record) -> None:
    assert record.api_key is not None, "a key's requests are counted"
    status = await limiter.hit(record.api_key.id)
    if status is None:
        return
    record.added |= status.headers()
    if status.exceeded:
        raise RequestError(
            "rate_limited",
            f"This key has made its {status.limit.requests} requests of {status.limit.window_s} seconds; "
            f"try again in {status.retry_after_s} seconds.",
        )


def _answer(document: Struct | msgspec.Raw, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(document), headers=headers, media_type="application/json")


def _header(request: Request, name: str) -> str | None:
    """Read a header, whose name is in lower case; None if there is none."""
    return record_of(request).received.get(name)


def etag(revision: int) -> dict[str, str]:
    """Make the header that carries a session's revision."""
    return {"etag": f'"{revision}"'}


def _session_headers(session: Session) -> dict[str, str]:
    """Say what the body, whose fields are fixed, does not."""
    details = session.details or SessionDetails()
    headers = {**etag(session.revision), "session-expires": format_time(session.expires_at)}
    if details.modified_at is not None:
        headers["session-modified"] = format_time(details.modified_at)
    if details.modified_by is not None:
        headers["session-modified-by"] = _quoted(details.modified_by)
    if details.looked_up_at is not None:
        headers["session-looked-up"] = format_time(details.looked_up_at)
    return headers


def _effect_headers(request: Request, effect: Effect | None) -> dict[str, str]:
    """Describe a write's effect, so that a CI log shows a view that delays writes."""
    assert effect is not None, "the result of a write has an effect"
    record = record_of(request)
    record.effect = effect
    if record.write is not None:
        record.write.revision = effect.revision
    timing = f"commit;dur={effect.commit_s * 1000:.2f}"
    headers = {}
    if effect.replicas:
        timing += f", durable;dur={effect.durable_s * 1000:.2f}"
        headers = replicas_header(effect)
    if not effect.waited:
        return {"preference-applied": "respond-async", "server-timing": timing, **headers}
    timing += f", effective;dur={effect.effective_s * 1000:.2f}"
    return {"server-timing": timing, **views_header(effect), **headers}


def views_header(counts: Effect | TooFewViewsError) -> dict[str, str]:
    """Make the header that counts the views which confirmed a write, and those which expired."""
    return {"session-views": f"confirmed={counts.confirmed}, expired={counts.expired}"}


def replicas_header(found: Effect | NotDurableError) -> dict[str, str]:
    """Make the header that counts the replicas which have a write."""
    return {"session-replicas": str(found.replicas)}


class _Terms(TypedDict):
    wait: bool
    views: int
    replicas: int | None


def _terms(request: Request) -> _Terms:
    """Read what a write waits for; ``Prefer: respond-async`` (RFC 7240) asks it not to wait for views."""
    query = record_of(request).query
    prefer = _header(request, "prefer")
    wait = prefer is None or not inputs.prefers(prefer, "respond-async")
    replicas = inputs.parse_number(query["replicas"], 0) if "replicas" in query else None
    return {"wait": wait, "views": inputs.parse_number(query.get("views"), 0), "replicas": replicas}


def _mode(request: Request, modes: Sequence[T], default: T | None) -> T:
    """Read the mode of a call."""
    named = record_of(request).query.get("mode", default)
    for mode in modes:
        if mode == named:
            return mode
    raise RequestError("invalid_mode", f"mode must be {modes[0]!r} or {modes[1]!r}.")


def _session_key(request: Request) -> str:
    return inputs.decode_session_key(request.path_params["sessionKey"])


def _entity_tags(request: Request, name: str, *, weak: bool) -> tuple[int, ...] | Literal["*"] | None:
    """Read the revisions that a precondition names; None if the call has none."""
    value = _header(request, name.lower())
    return None if value is None else inputs.parse_entity_tags(value, name, weak=weak)


def _refuse(request: Request, name: str) -> None:
    """Refuse a precondition that the call can't check, because the client relies on it."""
    if _header(request, name.lower()) is not None:
        raise InvalidQueryError(f"The header {name} can't be used here; leave it out.")


_encode = msgspec.json.Encoder().encode

#: A key's name is the same in many answers.
_quoted = lru_cache(maxsize=1000)(partial(quote, safe=""))
