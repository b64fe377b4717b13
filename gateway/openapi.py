"""The API's document, OpenAPI 3.1, made from the routes, what is declared beside each handler, and the msgspec types.

What is written here is said once for all calls: parameters and headers by name, and an example of each error.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from sessionstore import __version__
from sessionstore.catalog.model import MAX_SEARCH_LENGTH
from sessionstore.paging import MAX_PAGE
from sessionstore.session import MAX_SLUG_LENGTH, SLUG_PATTERN

from .description import Handler, Link, Operation, operation_of
from .errors import NOT_HTTP, STATUS, ErrorDocument
from .inputs import NO_LINE_BREAK, OVERRIDE_PATTERN

if TYPE_CHECKING:
    from .routes import Resource

__all__ = ["ENTITY_TAGS_PATTERN", "ERROR_EXAMPLES", "SESSION_KEY_PATTERN", "build_document"]

JSONObject = dict[str, Any]

#: Characters that are trimmed from a session key's ends or removed from it, and control characters; as in
#: `sessionstore.session.normalize_session_key`.
_WIDE_BLANK = r"\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_BLANK = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0" + _WIDE_BLANK
_VISIBLE = rf"[^\u0000-\u0020\u007f-\u00a0{_WIDE_BLANK}]"
_INSIDE = r"[^\u0000-\u0009\u000b\u000c\u000e-\u001f\u007f-\u009f]"

#: What a session key may be before it is normalised: something visible, and no control character inside it. Only of its
#: first 200 characters that is true, since the rest is cut off.
SESSION_KEY_PATTERN = rf"^[{_BLANK}]*{_VISIBLE}({_INSIDE}*{_VISIBLE})?[{_BLANK}]*$"

#: `inputs.parse_entity_tags` is more patient with white space and empty members, as RFC 9110 wants it.
ENTITY_TAGS_PATTERN = r'^(\*|(W/)?"[!#-~]*"(, *(W/)?"[!#-~]*")*)$'
_SLUG = {"type": "string", "pattern": SLUG_PATTERN, "maxLength": MAX_SLUG_LENGTH}

_INTRODUCTION = """\
Set, read and tear down the mock state of test sessions. For CI; server to server.

A write answers when every live proxy serves the new state: its 200 is all the synchronisation that a test needs.

An unknown or repeated query parameter or body field is an error that names it. HEAD works wherever GET does; any other
method is 405 `method_not_allowed`, with `Allow`. `X-Request-Id` is taken from the request where it is well-formed (at
most 128 letters, digits, `.`, `_`, `-`), and the gateway's log has it too."""

_QUERY: dict[str, JSONObject] = {
    "project": {
        "description": "The project. A key for one project may leave it out, and may name no other; with a key for "
        "all projects it is required.",
        "schema": _SLUG,
        "example": "checkout",
    },
    "environment": {
        "description": "The environment. It may be left out where the project has registered exactly one.",
        "schema": _SLUG,
        "example": "staging",
    },
    "mode": {
        "description": "`reset` clears the session and keeps it, `delete` removes it.",
        "schema": {"type": "string", "enum": ["reset", "delete"], "default": "reset"},
        "example": "reset",
    },
    "limit": {
        "description": "Entries of one page, at most.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 50},
        "example": 50,
    },
    "cursor": {
        "description": "`nextCursor` of the page before.",
        "schema": {"type": "string", "format": "session-cursor"},
    },
    "search": {
        "description": "Only scenarios whose name holds this, without regard to case.",
        "schema": {"type": "string", "maxLength": MAX_SEARCH_LENGTH},
        "example": "payment",
    },
    "before": {
        "description": "`nextBefore` of the page before.",
        "schema": {"type": "string", "format": "scenario-cursor"},
    },
}

_PATH: dict[str, JSONObject] = {
    "sessionKey": {
        "description": "The session's key: any text, percent-encoded as UTF-8 (a slash is `%2F`). Line breaks are "
        "removed, surrounding white space is trimmed, and the rest is cut at 200 characters, here and in every proxy.",
        "schema": {"type": "string", "pattern": SESSION_KEY_PATTERN},
        "example": "ci-42",
    },
    "overrideId": {
        "description": "A published mock.",
        "schema": {"type": "string", "pattern": OVERRIDE_PATTERN},
        "example": "ovr_extraMock",
    },
}

_REQUEST_HEADERS: dict[str, JSONObject] = {
    "If-Match": {
        "description": "Revisions, as `ETag` gave them, one of which the session must be at; or `*` for any session "
        "that exists.",
        "schema": {"type": "string", "pattern": ENTITY_TAGS_PATTERN},
        "example": "*",
    },
    "If-None-Match": {
        "description": "Revisions that the caller has; or `*`.",
        "schema": {"type": "string", "pattern": ENTITY_TAGS_PATTERN},
        "example": '"7"',
    },
    "Prefer": {
        "description": "`respond-async`: answer at commit, and do not wait until every live proxy serves the write.",
        "schema": {"type": "string"},
        "example": "respond-async",
    },
}
_CREATE_ONLY: JSONObject = {
    "description": "Only `*`: create the session, and never change one.",
    "schema": {"type": "string", "pattern": r"^\*$"},
    "example": "*",
}

_RESPONSE_HEADERS: dict[str, JSONObject] = {
    "X-Request-Id": {
        "description": "Names the request in the gateway's log.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "ETag": {"description": "The session's revision.", "schema": {"type": "string", "pattern": '^"[0-9]+"$'}},
    "RateLimit-Policy": {
        "description": "The key's limit: `q` requests in `w` seconds. Left out where there is none.",
        "schema": {"type": "string", "pattern": '^"key";q=[0-9]+;w=[0-9]+$'},
    },
    "RateLimit": {
        "description": "Requests left (`r`), and seconds until the window ends (`t`).",
        "schema": {"type": "string", "pattern": '^"key";r=[0-9]+;t=[0-9]+$'},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "Server-Timing": {
        "description": "Milliseconds until Redis had committed the write, and from then until every live proxy "
        "served it.",
        "schema": {"type": "string", "pattern": r"^commit;dur=[0-9.]+(, effective;dur=[0-9.]+)?$"},
    },
    "Session-Views": {
        "description": "Live views of proxies that confirmed the write, and views whose lease ran out meanwhile. Left "
        "out with `Prefer: respond-async`.",
        "schema": {"type": "string", "pattern": "^confirmed=[0-9]+, expired=[0-9]+$"},
    },
    "Preference-Applied": {
        "description": "`respond-async` where the answer came at commit.",
        "schema": {"type": "string", "enum": ["respond-async"]},
    },
    "WWW-Authenticate": {
        "description": "How to authenticate.",
        "schema": {"type": "string", "enum": ['Bearer realm="sessions"']},
    },
}

#: A sentence of each error, as it is.
ERROR_EXAMPLES = {
    "bad_request": NOT_HTTP,
    "body_too_large": "The body is larger than 65536 bytes, the most that is taken.",
    "environment_required": "Name the environment, as in ?environment=staging: project 'checkout' has registered none "
    "to choose from.",
    "internal_error": "The gateway failed; its log says why under the request id 5f0c1d6b2a9e4c37.",
    "invalid_body": "globalDelayMs must be a whole number of milliseconds from 0 to 120000, or null.",
    "invalid_json": "The body is empty; send a JSON object, {} to set nothing.",
    "invalid_mode": "mode must be 'reset', which clears the session and keeps it, or 'delete'.",
    "invalid_override": "'extraMock' is not an override id: use 'ovr_' and 1 to 124 letters, digits, '_' or '-'.",
    "invalid_query": "Unknown query parameter 'enviroment'; did you mean 'environment'?",
    "invalid_scenario": "'declined' is not a scenario id: use 'scn_' and 1 to 124 letters, digits, '_' or '-'.",
    "invalid_session_key": "The session key holds a control character; use printable text.",
    "not_found": "There is no session 'ci-42' on checkout/staging; PUT creates it.",
    "precondition_failed": "The session 'ci-42' is at revision 8, which the precondition rules out; read it and try "
    "again.",
    "project_required": "Name the project, as in ?project=checkout: this key opens every project.",
    "rate_limited": "This key has made its 120 requests of 60 seconds; try again in 7 seconds.",
    "scope_mismatch": "This key is for the project 'search' only; leave project out.",
    "store_unavailable": "Redis can't be reached; nothing was changed, try again later.",
    "unauthorized": "Send a valid API key, as in 'Authorization: Bearer fmk_…'.",
    "unsupported_media_type": "Send the body as JSON in UTF-8, with the header 'Content-Type: application/json' "
    "(curl: -H 'Content-Type: application/json'; its -d alone sends a form).",
}

#: What is not found where no session is named.
_NO_ENVIRONMENT = "Project 'checkout' has no environment 'live'; name one that its catalog registers."

_REASONS = {
    304: "The session is at a revision that If-None-Match names.",
    400: "The request, or its body, can't be read.",
    401: "No key, or one that opens nothing.",
    403: "The key is for another project.",
    404: "There is no such session, override or environment.",
    412: "If-Match or If-None-Match does not hold; nothing was changed.",
    413: "The body is too large.",
    415: "The body is not declared to be JSON in UTF-8.",
    422: "Something in the request can't be used; nothing was changed.",
    429: "The key has made more requests than it may.",
    500: "The gateway failed; its log says why.",
    503: "Redis can't be reached, or refuses; the sentence says whether a write may have been applied.",
}
#: What a response of some status always has.
_ERROR_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}

#: Codes that every call can have, and that every call with a key can.
_ANY = ("bad_request", "internal_error")
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
_WITH_BODY = ("invalid_json", "invalid_body", "body_too_large", "unsupported_media_type")

_PATH_PARAMETER = re.compile(r"\{(\w+)\}")


def build_document(resources: Iterable[Resource]) -> JSONObject:
    """Describe the API that some routes make up."""
    paths: JSONObject = {}
    answers: set[type[Struct]] = {ErrorDocument}
    bodies: set[type[Struct]] = set()
    for resource in resources:
        item = paths[resource.path] = {}
        for method, handler in resource.handlers.items():
            operation = operation_of(handler)
            if not isinstance(operation.answer, str):
                answers.add(operation.answer)
            if operation.body is not None:
                bodies.add(operation.body)
            item[method.lower()] = _operation(resource, method, handler, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sessions of mock state", "version": __version__, "description": _INTRODUCTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(answers, bodies),
            "parameters": {
                **{name: _parameter(name, "query", entry) for name, entry in _QUERY.items()},
                **{name: _parameter(name, "path", entry) for name, entry in _PATH.items()},
                **{name: _parameter(name, "header", entry) for name, entry in _REQUEST_HEADERS.items()},
            },
            "headers": _RESPONSE_HEADERS,
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


def _operation(resource: Resource, method: str, handler: Handler, operation: Operation) -> JSONObject:
    summary, _, description = inspect.cleandoc(handler.__doc__ or "").partition("\n\n")
    documented: JSONObject = {
        "operationId": _camel(handler.__name__),
        "summary": summary.rstrip("."),
        "parameters": _parameters(resource, method, operation),
        "responses": _responses(resource, method, operation),
    }
    if description:
        documented["description"] = description.replace("\n", " ")
    if not resource.secured:
        documented["security"] = []
    if operation.body is not None:
        documented["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref("schemas", operation.body.__name__),
                    "example": operation.body_example,
                }
            },
        }
    return documented


def _parameters(resource: Resource, method: str, operation: Operation) -> list[JSONObject]:
    parameters = [_ref("parameters", name) for name in (*_PATH_PARAMETER.findall(resource.path), *operation.query)]
    for name in operation.headers:
        if (name, method) == ("If-None-Match", "PUT"):
            parameters.append(_parameter(name, "header", _CREATE_ONLY))
        else:
            parameters.append(_ref("parameters", name))
    return parameters


def _responses(resource: Resource, method: str, operation: Operation) -> JSONObject:
    by_status: dict[int, list[str]] = {}
    for code in _codes(resource, method, operation):
        by_status.setdefault(STATUS[code], []).append(code)
    responses: JSONObject = {"200": _success(resource, operation)}
    if method == "GET" and "If-None-Match" in operation.headers:
        headers = {**_headers("X-Request-Id", "ETag"), **_optional_headers(resource)}
        responses["304"] = {"description": _REASONS[304], "headers": headers}
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = _failure(resource, status, sorted(codes))
    return responses


def _codes(resource: Resource, method: str, operation: Operation) -> set[str]:
    """Every code that a call can be answered with."""
    codes = {*_ANY, *operation.errors}
    if resource.secured:
        codes.update(_WITH_KEY)
    if "{sessionKey}" in resource.path:
        codes.add("invalid_session_key")
    if "{overrideId}" in resource.path:
        codes.add("invalid_override")
    if operation.body is not None:
        codes.update(_WITH_BODY)
    if method != "GET" and "If-Match" in operation.headers:
        codes.add("precondition_failed")
    return codes


def _success(resource: Resource, operation: Operation) -> JSONObject:
    headers = {**_headers("X-Request-Id", *operation.answer_headers), **_optional_headers(resource)}
    if "Server-Timing" in operation.answer_headers:
        headers |= {name: _ref("headers", name) for name in ("Session-Views", "Preference-Applied")}
    content: JSONObject = {}
    if isinstance(operation.answer, str):
        content[operation.answer] = {}
    else:
        content["application/json"] = {
            "schema": _ref("schemas", operation.answer.__name__),
            "example": msgspec.to_builtins(operation.example),
        }
    response: JSONObject = {"description": "As asked for.", "headers": headers, "content": content}
    if operation.links:
        response["links"] = {name: _link(link) for name, link in operation.links.items()}
    return response


def _failure(resource: Resource, status: int, codes: list[str]) -> JSONObject:
    headers = {**_headers("X-Request-Id", *_ERROR_HEADERS.get(status, ()))}
    if status != 401:
        headers |= _optional_headers(resource)
    return {
        "description": _REASONS[status],
        "headers": headers,
        "content": {
            "application/json": {
                "schema": {**_ref("schemas", "ErrorDocument"), "properties": {"code": {"enum": codes}}},
                "examples": {code: {"value": {"error": _example(code, resource), "code": code}} for code in codes},
            }
        },
    }


def _example(code: str, resource: Resource) -> str:
    if code == "not_found" and "{sessionKey}" not in resource.path:
        return _NO_ENVIRONMENT
    return ERROR_EXAMPLES[code]


def _headers(*names: str) -> JSONObject:
    """Headers that a response always has."""
    return {name: {**_RESPONSE_HEADERS[name], "required": True} for name in names}


def _optional_headers(resource: Resource) -> JSONObject:
    """Those that it has where requests are counted."""
    return {name: _ref("headers", name) for name in ("RateLimit-Policy", "RateLimit")} if resource.secured else {}


def _schemas(answers: set[type[Struct]], bodies: set[type[Struct]]) -> JSONObject:
    kinds = sorted((*answers, *bodies), key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for name, schema in schemas.items():
        if name not in {body.__name__ for body in bodies} and name != "ErrorDocument":
            schema["additionalProperties"] = False  # exactly these fields
    cleaned: JSONObject = _for_json_schema(schemas)
    return cleaned


def _for_json_schema(value: Any) -> Any:
    """Take from patterns what only Python needs."""
    match value:
        case dict():
            return {
                name: item.removesuffix(NO_LINE_BREAK) if name == "pattern" else _for_json_schema(item)
                for name, item in value.items()
            }
        case list() | tuple():
            return [_for_json_schema(item) for item in value]
    return value


def _parameter(name: str, place: str, entry: Mapping[str, Any]) -> JSONObject:
    return {"name": name, "in": place, "required": place == "path", **entry}


def _link(link: Link) -> JSONObject:
    return {"operationId": link.operation, "parameters": dict(link.parameters)}


def _ref(kind: str, name: str) -> JSONObject:
    return {"$ref": f"#/components/{kind}/{name}"}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
