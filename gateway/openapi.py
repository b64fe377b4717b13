"""The API's document, OpenAPI 3.1, derived from the routes, the handlers' declarations and the msgspec types.

Written here, once for all calls: what each parameter and header is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import Struct

from sessionstore import __version__
from sessionstore.catalog.model import MAX_SEARCH_LENGTH
from sessionstore.paging import MAX_PAGE
from sessionstore.protocol.calls import MAX_REPLICAS, MAX_VIEWS
from sessionstore.session import MAX_SLUG_LENGTH, OVERRIDE_PATTERN, SLUG_PATTERN, SessionDocument

from .description import Handler, Operation, Resource, operation_of
from .errors import STATUS, ErrorDocument
from .inputs import DEFAULT_PAGE, SessionBody

JSONObject = dict[str, Any]

# Characters that normalising removes, and control characters; as in `sessionstore.session.normalize_session_key`.
_WIDE_BLANK = r"\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_BLANK = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0" + _WIDE_BLANK
_VISIBLE = rf"[^\u0000-\u0020\u007f-\u00a0{_WIDE_BLANK}]"
_INSIDE = r"[^\u0000-\u0009\u000b\u000c\u000e-\u001f\u007f-\u009f]"

#: A session key before it is normalised: something visible, and no control character inside. The rule holds for the
#: first 200 characters; the rest is cut off.
SESSION_KEY_PATTERN = rf"^[{_BLANK}]*{_VISIBLE}({_INSIDE}*{_VISIBLE})?[{_BLANK}]*$"

_IN_PREFIX = r"[^\u0000-\u001f\u007f-\u009f\u2028\u2029]"
#: How a session key may begin: with something visible; and a whole key, of 200 characters, ends so.
KEY_PREFIX_PATTERN = rf"^{_VISIBLE}({_IN_PREFIX}{{0,198}}|{_IN_PREFIX}{{198}}{_VISIBLE})$"

#: `inputs.parse_entity_tags` also takes the white space and empty members that RFC 9110 allows.
ENTITY_TAGS_PATTERN = r'^(\*|(W/)?"[!#-~]*"(, *(W/)?"[!#-~]*")*)$'

_INTRODUCTION = """\
Set, read and tear down the mock state of test sessions. For CI; server to server.

A write answers when every live proxy serves the new state: its 200 is all the synchronisation that a test needs.

An unknown or repeated query parameter or body field is an error that names it. HEAD works wherever GET does; any other
method is 405 `method_not_allowed`, with `Allow`. A well-formed `X-Request-Id` (at most 128 letters, digits, `.`, `_`,
`-`) is kept, and the gateway's log has it too."""


def _text(description: str, example: str | None = None, **schema: object) -> JSONObject:
    """Describe a parameter or header that is text."""
    entry = {"description": description, "schema": {"type": "string", **schema}}
    return entry if example is None else {**entry, "example": example}


_SLUG = {"pattern": SLUG_PATTERN, "maxLength": MAX_SLUG_LENGTH}

_PATH = {
    "sessionKey": _text(
        "The session's key: any text, percent-encoded as UTF-8 (a slash is `%2F`). The gateway and every proxy remove "
        "line breaks, trim surrounding white space, and cut the rest at 200 characters.",
        "ci-42",
        pattern=SESSION_KEY_PATTERN,
    ),
    "overrideId": _text("A published mock.", "ovr_extraMock", pattern=OVERRIDE_PATTERN),
}
_QUERY = {
    "project": _text(
        "The project. A key for one project may leave it out. A key for all projects must name it.", "checkout", **_SLUG
    ),
    "environment": _text(
        "The environment. It may be left out if the project has registered exactly one.", "staging", **_SLUG
    ),
    "mode": _text(
        "`reset` clears the session and keeps it, `delete` removes it.",
        "reset",
        enum=["reset", "delete"],
        default="reset",
    ),
    "limit": {
        "description": "Entries of a page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    },
    "prefix": _text(
        "How the session keys begin, compared byte by byte as UTF-8. It is not normalised.",
        "ci-4821-",
        pattern=KEY_PREFIX_PATTERN,
    ),
    "views": {
        "description": "Live views that must have reported the write themselves. If fewer have, the state is set, and "
        "the answer is `too_few_views`. It waits for no view to appear. Not with `respond-async`.",
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_VIEWS, "default": 0},
    },
    "replicas": {
        "description": "Replicas of Redis that must have the write. If fewer have it in time, the state is set, and "
        "the answer is `not_durable`. Without it, the gateway's option decides, which is 0 by default.",
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_REPLICAS},
    },
    "cursor": _text("`nextCursor` of the previous page.", format="session-cursor"),
    "search": _text("Only scenarios whose name contains this, in any case.", "payment", maxLength=MAX_SEARCH_LENGTH),
    "before": _text("`nextBefore` of the previous page.", format="scenario-cursor"),
}
_REQUEST_HEADERS = {
    "If-Match": _text(
        "Revisions from `ETag`; the session must be at one of them. `*` stands for any session that exists.",
        "*",
        pattern=ENTITY_TAGS_PATTERN,
    ),
    "If-None-Match": _text("Revisions that the caller has; or `*`.", '"7"', pattern=ENTITY_TAGS_PATTERN),
    "Prefer": _text("`respond-async`: answer before every live proxy serves the write.", "respond-async"),
}
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"

#: Calls that take another parameter of the same name, by operationId.
_VARIANTS = {
    ("putSession", "If-None-Match"): _text("Only `*`: create the session, never change one.", "*", pattern=r"^\*$"),
    ("putSession", "mode"): _text(
        "`merge` leaves an omitted field unchanged, `replace` clears it.",
        "replace",
        enum=["merge", "replace"],
        default="merge",
    ),
    ("deleteSessions", "mode"): {
        **_text(
            "`reset` clears the sessions and keeps them, `delete` removes them.", "delete", enum=["reset", "delete"]
        ),
        "required": True,
    },
    ("deleteSessions", "prefix"): {**_QUERY["prefix"], "required": True},
}

_HEADERS = {
    "X-Request-Id": _text("Names the request in the gateway's log.", pattern="^[A-Za-z0-9._-]{1,128}$"),
    "ETag": _text("The session's revision.", pattern='^"[0-9]+"$'),
    "Session-Expires": _text("When the session expires if it is not used.", pattern=TIME_PATTERN),
    "Session-Modified": _text("When its state was last set.", pattern=TIME_PATTERN),
    "Session-Modified-By": _text(
        "Who set it: the API key's name and public id, or the name that a program gave itself; percent-encoded.",
        pattern="^([A-Za-z0-9._~-]|%[0-9A-F]{2})+$",
    ),
    "Session-Looked-Up": _text("When a proxy last looked it up. Absent if never.", pattern=TIME_PATTERN),
    "RateLimit-Policy": _text("The key's limit: `q` requests in `w` seconds.", pattern='^"key";q=[0-9]+;w=[0-9]+$'),
    "RateLimit": _text(
        "Requests left (`r`), and seconds until the window ends (`t`).", pattern='^"key";r=[0-9]+;t=[0-9]+$'
    ),
    "Retry-After": _text("Seconds after which to try again.", pattern="^[0-9]+$"),
    "Server-Timing": _text(
        "Milliseconds until Redis had committed the write, and from then until the replicas had it, and until every "
        "live proxy served it.",
        pattern=r"^commit;dur=[0-9.]+(, durable;dur=[0-9.]+)?(, effective;dur=[0-9.]+)?$",
    ),
    "Session-Views": _text(
        "Live views that confirmed the write, and views whose lease expired meanwhile. Absent with `respond-async`.",
        pattern="^confirmed=[0-9]+, expired=[0-9]+$",
    ),
    "Session-Replicas": _text(
        "Replicas of Redis that have the write. Absent if it waited for none.", pattern="^[0-9]+$"
    ),
    "Preference-Applied": _text("`respond-async` if the answer came at commit.", enum=["respond-async"]),
    "WWW-Authenticate": _text("How to authenticate.", enum=['Bearer realm="sessions"']),
}

#: Headers that every response of a status has.
_ERROR_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}

# Codes of every call, of calls with a key, and of calls with a body
_ANY = ("bad_request", "internal_error", "too_many_connections")
_WITH_KEY = (
    "unauthorized",
    "scope_mismatch",
    "not_found",
    "project_required",
    "environment_required",
    "invalid_query",
    "rate_limited",
    "store_unavailable",
)
#: Of calls that write, and so wait for the views.
_WRITES = ("not_durable", "not_effective", "outcome_unknown", "too_few_views")
_WITH_BODY = (
    "invalid_json",
    "invalid_body",
    "invalid_override",
    "invalid_scenario",
    "body_too_large",
    "unsupported_media_type",
)

_PATH_PARAMETER = re.compile(r"\{(\w+)\}")


def build_document(resources: Sequence[Resource], ttl_s: int) -> JSONObject:
    """Describe the API that `resources` make up, on a store that keeps sessions for `ttl_s` seconds."""
    operations = [operation_of(handler) for resource in resources for handler in resource.handlers.values()]
    kinds = {kind for operation in operations for kind in (operation.answer, operation.body) if isinstance(kind, type)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sessions of mock state", "version": __version__, "description": _INTRODUCTION},
        "servers": [{"url": "/"}],
        "paths": {
            resource.path: {
                method.lower(): _describe(resource, method, handler, _links(resource, resources))
                for method, handler in resource.handlers.items()
            }
            for resource in resources
        },
        "components": {
            "schemas": _schemas({ErrorDocument, *kinds}, ttl_s),
            "parameters": {
                name: _parameter(name, place, entry)
                for place, entries in (("path", _PATH), ("query", _QUERY), ("header", _REQUEST_HEADERS))
                for name, entry in entries.items()
            },
            "headers": _HEADERS,
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "fmk_ and 43 characters of base64url",
                    "description": "An API key, for one project or for all of them.",
                }
            },
        },
        "security": [{"apiKey": []}],
    }


def _describe(resource: Resource, method: str, handler: Handler, links: JSONObject) -> JSONObject:
    operation = operation_of(handler)
    summary, _, description = inspect.cleandoc(handler.__doc__ or "").partition("\n\n")
    described: JSONObject = {
        "operationId": _operation_id(handler),
        "summary": summary.rstrip("."),
        "parameters": _parameters(resource, handler),
        "responses": _responses(resource, method, operation, links),
    }
    if description:
        described["description"] = description.replace("\n", " ")
    if not resource.secured:
        described["security"] = []
    if operation.body is not None:
        content = {"schema": _ref("schemas", operation.body.__name__), "example": operation.example}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _parameters(resource: Resource, handler: Handler) -> list[JSONObject]:
    operation = operation_of(handler)
    call = _operation_id(handler)
    names = (*_PATH_PARAMETER.findall(resource.path), *operation.query, *operation.headers)
    return [
        _parameter(name, "query" if name in operation.query else "header", _VARIANTS[call, name])
        if (call, name) in _VARIANTS
        else _ref("parameters", name)
        for name in names
    ]


def _responses(resource: Resource, method: str, operation: Operation, links: JSONObject) -> JSONObject:
    limited = {name: _ref("headers", name) for name in ("RateLimit-Policy", "RateLimit")} if resource.secured else {}
    responses: JSONObject = {"200": _success(operation, limited, links)}
    if method == "GET" and "If-None-Match" in operation.headers:
        headers = {**_required("X-Request-Id"), **_session_headers(), **limited}
        responses["304"] = {"description": HTTPStatus(304).phrase, "headers": headers}
    codes = _codes(resource, method, operation)
    for status in sorted({STATUS[code] for code in codes}):
        headers = _required("X-Request-Id", *_ERROR_HEADERS.get(status, ()))
        if status == 503 and "Prefer" in operation.headers:
            # A write that was committed names the session's revision. Not every one is to be sent again.
            optional = ("ETag", "Retry-After", "Session-Replicas", "Session-Views")
            headers |= {name: _ref("headers", name) for name in optional}
        choices = {"properties": {"code": {"enum": sorted(code for code in codes if STATUS[code] == status)}}}
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "headers": headers if status == 401 else {**headers, **limited},
            "content": {"application/json": {"schema": {**_ref("schemas", "ErrorDocument"), **choices}}},
        }
    return responses


def _codes(resource: Resource, method: str, operation: Operation) -> set[str]:
    """Collect every code that a call may be answered with."""
    codes = {*_ANY, *operation.errors}
    if resource.secured:
        codes.update(_WITH_KEY)
    if "Prefer" in operation.headers:
        codes.update(_WRITES)
    if operation.body is not None:
        codes.update(_WITH_BODY)
    if "{sessionKey}" in resource.path:
        codes.add("invalid_session_key")
    if "{overrideId}" in resource.path:
        codes.add("invalid_override")
    if "mode" in operation.query:
        codes.add("invalid_mode")
    if method != "GET" and "If-Match" in operation.headers:
        codes.add("precondition_failed")
    return codes


def _success(operation: Operation, limited: JSONObject, links: JSONObject) -> JSONObject:
    headers = {**_required("X-Request-Id"), **limited}
    if operation.answer is SessionDocument:
        headers |= _session_headers()
    if "Prefer" in operation.headers:
        optional = ("Session-Replicas", "Session-Views", "Preference-Applied")
        headers |= {**_required("Server-Timing"), **{name: _ref("headers", name) for name in optional}}
    if isinstance(operation.answer, str):
        content: JSONObject = {operation.answer: {}}
    else:
        content = {"application/json": {"schema": _ref("schemas", operation.answer.__name__)}}
    return {"description": HTTPStatus(200).phrase, "headers": headers, "content": content, "links": links}


def _session_headers() -> JSONObject:
    optional = ("Session-Modified", "Session-Modified-By", "Session-Looked-Up")
    return {**_required("ETag", "Session-Expires"), **{name: _ref("headers", name) for name in optional}}


def _links(source: Resource, resources: Sequence[Resource]) -> JSONObject:
    """Link a call on a session to all other calls on it."""
    given = _PATH_PARAMETER.findall(source.path)
    if "sessionKey" not in given:
        return {}
    links = {}
    for target in resources:
        if "{sessionKey}" in target.path:
            shared = [f"path.{name}" for name in given if f"{{{name}}}" in target.path]
            parameters = {name: f"$request.{name}" for name in (*shared, "query.project", "query.environment")}
            for handler in target.handlers.values():
                links[_operation_id(handler)] = {"operationId": _operation_id(handler), "parameters": parameters}
    return links


def _required(*names: str) -> JSONObject:
    """Describe headers that a response always has."""
    return {name: {**_HEADERS[name], "required": True} for name in names}


def _schemas(kinds: set[type[Struct]], ttl_s: int) -> JSONObject:
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    for schema in schemas.values():
        schema["additionalProperties"] = False  # exactly these fields
    for choice in schemas[SessionBody.__name__]["properties"]["ttlSeconds"]["anyOf"]:
        if choice["type"] == "integer":
            choice["maximum"] = ttl_s
    return schemas


def _parameter(name: str, place: str, entry: JSONObject) -> JSONObject:
    return {"name": name, "in": place, "required": place == "path", **entry}


def _ref(kind: str, name: str) -> JSONObject:
    return {"$ref": f"#/components/{kind}/{name}"}


def _operation_id(handler: Handler) -> str:
    first, *rest = handler.__name__.split("_")
    return first + "".join(word.capitalize() for word in rest)
