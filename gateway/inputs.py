"""Reads a request's query, path, body and preconditions; pure functions.

An unknown or repeated query parameter or body field is an error that names it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Literal
from urllib.parse import parse_qsl, unquote

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import ClientDisconnect, Request

from sessionstore import session
from sessionstore.catalog.document import DuplicateNameError, unique_object
from sessionstore.errors import InvalidQueryError, InvalidSessionKeyError, SessionStoreError

from .errors import RequestError

#: Bytes of a request's body.
MAX_BODY_BYTES = 64 * 1024
#: Sessions or scenarios of a page, if the call names no limit.
DEFAULT_PAGE = 50

# In Python `$` also matches before a line break at the end; in JSON Schema it does not.
_SLUG = Meta(pattern=session.SLUG_PATTERN[:-1] + r"\Z", extra_json_schema={"pattern": session.SLUG_PATTERN})


class SessionBody(session.SessionPatch, rename="camel", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of a PUT. A field that is omitted is left unchanged; null clears it."""

    project: Annotated[
        Annotated[str, _SLUG] | UnsetType,
        Meta(description="As the query parameter. If both name it, they must be the same."),
    ] = UNSET
    environment: Annotated[Annotated[str, _SLUG] | UnsetType, Meta(description="As the query parameter.")] = UNSET


_slug_rule = (
    f"a slug of at most {session.MAX_SLUG_LENGTH} letters, digits, '.', '_' or '-', beginning with a letter or digit"
)
_delay_rule = f"a whole number of milliseconds from 0 to {session.MAX_DELAY_MS}, or null"

#: The rule of each field, for the sentence of an error.
_RULES = {
    "project": _slug_rule,
    "environment": _slug_rule,
    "scenario": "a scenario id, 'scn_…', or null",
    "overrides": f"a list of at most {session.MAX_OVERRIDES} override ids, 'ovr_…'; send [] for none",
    "globalDelayMs": _delay_rule,
    "globalDelayMaxMs": _delay_rule,
    "label": f"a string of at most {session.MAX_LABEL_LENGTH} characters, or null",
    "ttlSeconds": f"a whole number of seconds from {session.MIN_TTL_S} to the server's TTL, or null",
}
_PLACE = re.compile(r"`\$\.(\w+)")
_find_doubles = json.JSONDecoder(object_pairs_hook=unique_object, parse_int=str, parse_float=str).decode
# Possessive quantifiers: an almost valid text must not take quadratic time.
_JSON_TYPE = re.compile(r'application/json\s*+(?:;\s*+charset\s*+=\s*+"?utf-8"?\s*+)?;?\s*+\Z', re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: An entity tag, and a list of them, which may have empty members (RFC 9110, 8.8.3 and 5.6.1).
_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*+)"')
_ENTITY_TAGS = re.compile(rf"(?:[ \t]*+(?:{_ENTITY_TAG.pattern}[ \t]*+)?,)*+[ \t]*+(?:{_ENTITY_TAG.pattern}[ \t]*+)?\Z")
#: One member of a list of preferences (RFC 7240, 2), with the comma or end after it: its name, and the rest.
_PREFERENCE = re.compile(r"""[ \t]*+([!#$%&'*+.^_`|~0-9A-Za-z-]*+)((?:"(?:[^"\\]|\\.)*+"|[^",])*+)(?:,|\Z)""")
_REVISION = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z")


# Most calls of a client have the same query.
@lru_cache(maxsize=128)
def parse_query(raw: bytes, allowed: tuple[str, ...]) -> Mapping[str, str]:
    """Read the query string.

    Raises
    ------
    InvalidQueryError
        It names a parameter that the call does not take, repeats one, or is not UTF-8.
    """
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict")
    except UnicodeError:
        raise InvalidQueryError("The query string is not percent-encoded UTF-8; encode it so.") from None
    query = dict(pairs)
    for name in query:
        if name not in allowed:
            raise InvalidQueryError(f"Unknown query parameter {_shown(name)}; {_nearest(name, allowed)}")
    if len(query) != len(pairs):
        raise InvalidQueryError("A query parameter is given twice; name each once.")
    return query


def parse_number(text: str | None, default: int) -> int:
    """Read a whole number. The operation rejects a value that is no number or out of bounds."""
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else -1


def agree(name: str, in_query: str | None, in_body: str | UnsetType) -> str | None:
    """Return the project or environment that a PUT names in its query, its body, or both.

    Raises
    ------
    RequestError
        invalid_body: the two differ.
    """
    if in_body is UNSET:
        return in_query
    if in_query is not None and in_query != in_body:
        raise RequestError(
            "invalid_body",
            f"{name} is {_shown(in_query)} in the query and {_shown(in_body)} in the body; name it once.",
        )
    return in_body


def decode_session_key(segment: str) -> str:
    """Decode a percent-encoded session key. The library checks the result.

    Raises
    ------
    InvalidSessionKeyError
        It is not percent-encoded, or not UTF-8.
    """
    if _BROKEN_ESCAPE.search(segment):
        # Taken literally, a key would have two spellings.
        raise InvalidSessionKeyError("The session key holds a '%' that begins no percent-encoded byte; send it as %25.")
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidSessionKeyError(
            "The session key is not UTF-8; percent-encode the UTF-8 bytes of each special character."
        ) from None


def check_media_type(content_type: str | None, content_encoding: str | None) -> None:
    """Check that a body is declared as JSON, without a content encoding.

    Raises
    ------
    RequestError
        unsupported_media_type
    """
    if content_encoding is not None and content_encoding.lower() not in ("", "identity"):
        raise RequestError("unsupported_media_type", "Send the body as it is, without a Content-Encoding.")
    if content_type is None or not _JSON_TYPE.match(content_type):
        raise RequestError(
            "unsupported_media_type",
            "Send the body as JSON in UTF-8, with the header 'Content-Type: application/json' "
            "(curl: -H 'Content-Type: application/json'; its -d alone sends a form).",
        )


async def read_body(request: Request, declared: str) -> bytes:
    """Read the whole body, whose Content-Length is `declared`, if any. Stop as soon as it exceeds the bound.

    Raises
    ------
    RequestError
        body_too_large
    starlette.requests.ClientDisconnect
    """
    body = bytearray()
    more = len(declared) <= 18 and not (declared.isdigit() and int(declared) > MAX_BODY_BYTES)
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            break
        if not message.get("more_body", False):
            return bytes(body)
    raise RequestError("body_too_large", f"The body is larger than the limit of {MAX_BODY_BYTES} bytes; send less.")


async def skip_body(request: Request) -> None:
    """Wait for the end of a body that the call ignores, so that a request which breaks off changes nothing.

    Raises
    ------
    starlette.requests.ClientDisconnect
    """
    async for _ in request.stream():
        pass


def decode_body(body: bytes) -> SessionBody:
    """Decode the body of a PUT.

    Raises
    ------
    RequestError
        invalid_json: it is not JSON, or names a field twice; invalid_body: a field is unknown or of a wrong type.
    InvalidFieldError, InvalidOverrideError
        A field is out of its bounds.
    """
    try:
        document = msgspec.json.decode(body)
        # msgspec silently keeps the last of two fields with one name. Numbers stay text, for the check below.
        _find_doubles(body.decode())
    except DuplicateNameError as exc:
        raise RequestError("invalid_json", f"The body names {exc.name!r} twice; name each field once.") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise _json_error(body, exc) from None
    if not isinstance(document, dict):
        raise RequestError("invalid_body", 'The body must be a JSON object, as in {"label": "CI run 4821"}.')
    for name, value in document.items():
        if name not in _RULES:
            raise RequestError("invalid_body", f"Unknown field {_shown(name)}; {_nearest(name, _RULES)}")
        if isinstance(value, float) and value.is_integer():
            # JSON has one kind of number, and some clients send only floats.
            document[name] = int(value)
    try:
        return msgspec.convert(document, SessionBody)
    except msgspec.ValidationError as exc:
        if isinstance(exc.__cause__, SessionStoreError):
            raise exc.__cause__ from None
        place = _PLACE.search(str(exc))
        name = place[1] if place else ""
        raise RequestError("invalid_body", f"{name} must be {_RULES[name]}." if name in _RULES else f"{exc}.") from None


def parse_entity_tags(value: str, header: str, *, weak: bool) -> tuple[int, ...] | Literal["*"]:
    """Read the revisions that ``If-Match`` or ``If-None-Match`` names, or ``*``.

    A tag that no revision can have matches nothing, and is left out. A weak tag is left out unless `weak`: If-Match
    compares strongly, If-None-Match weakly (RFC 9110, 13.1).

    Raises
    ------
    InvalidQueryError
        It is not a list of entity tags.
    """
    if value.strip() == "*":
        return "*"
    members = _ENTITY_TAG.findall(value) if _ENTITY_TAGS.match(value) else []
    if not members:
        raise InvalidQueryError(f'The header {header} must be * or the ETags of responses, in quotes, as in "7".')
    return tuple(int(tag) for is_weak, tag in members if _REVISION.match(tag) and (weak or not is_weak))


def prefers(value: str, name: str) -> bool:
    """Whether the header ``Prefer`` names a preference without a value, in any case and with any parameters.

    A malformed header states no preference: it is a hint (RFC 7240, 2).
    """
    position = 0
    while position < len(value):
        match = _PREFERENCE.match(value, position)
        if match is None:
            return False
        if match[1].lower() == name and match[2].lstrip()[:1] in ("", ";"):
            return True
        position = match.end()
    return False


def _json_error(body: bytes, exc: Exception) -> RequestError:
    if not body.strip():
        return RequestError("invalid_json", "The body is empty; send a JSON object, {} to set nothing.")
    if isinstance(exc, RecursionError):
        return RequestError("invalid_json", "The body is nested too deeply; send a flat JSON object.")
    if isinstance(exc, UnicodeError):
        return RequestError("invalid_json", "The body is not UTF-8; encode it so.")
    return RequestError("invalid_json", f"The body is not valid JSON: {exc}.")


def _nearest(name: str, known: Iterable[str]) -> str:
    """Suggest a known name for an unknown one."""
    known = tuple(known)
    match difflib.get_close_matches(name[:64], known, 1):
        case [near]:
            return f"did you mean {near!r}?"
    return f"use one of {', '.join(known)}." if known else "this call takes none."


def _shown(text: str) -> str:
    """Quote text of the request in a sentence, cut short."""
    shown = ascii(text) if any("\ud800" <= char <= "\udfff" for char in text) else repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "…"
