"""What a request may say: query, path, body and preconditions. Pure functions of bytes.

Nothing passes in silence: an unknown or repeated query parameter or body field is an error that names it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from sessionstore.errors import InvalidOverrideError, InvalidQueryError, InvalidSessionKeyError
from sessionstore.session import MAX_DELAY_MS, MAX_LABEL_LENGTH, MAX_OVERRIDES, MAX_SLUG_LENGTH, SLUG_PATTERN

from .errors import InvalidBodyError, InvalidJSONError, UnsupportedMediaTypeError

__all__ = [
    "NO_LINE_BREAK",
    "OVERRIDE_PATTERN",
    "SCENARIO_PATTERN",
    "SessionPatch",
    "agree",
    "check_media_type",
    "decode_override_id",
    "decode_patch",
    "decode_session_key",
    "parse_entity_tags",
    "parse_limit",
    "parse_query",
    "prefers",
]

#: Put after ``$`` in a pattern for Python.
NO_LINE_BREAK = r"(?!\n)"
OVERRIDE_PATTERN = r"^ovr_[A-Za-z0-9_-]{1,124}$"
SCENARIO_PATTERN = r"^scn_[A-Za-z0-9_-]{1,124}$"

# In Python `$` also matches before a line break at the end; in JSON Schema it does not.
_Slug = Annotated[str, Meta(pattern=SLUG_PATTERN + NO_LINE_BREAK, max_length=MAX_SLUG_LENGTH)]
_Delay = Annotated[int, Meta(ge=0, le=MAX_DELAY_MS)]
# The library says what is wrong with an id; the document says what one looks like.
_Override = Annotated[str, Meta(extra_json_schema={"pattern": OVERRIDE_PATTERN})]
_Scenario = Annotated[str, Meta(extra_json_schema={"pattern": SCENARIO_PATTERN})]


class SessionPatch(Struct, rename="camel", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of a PUT. A field that is omitted is left unchanged; null clears it."""

    project: Annotated[_Slug, Meta(description="As the query parameter; named in both, they must be the same.")] | (
        UnsetType
    ) = UNSET
    environment: Annotated[_Slug, Meta(description="As the query parameter.")] | UnsetType = UNSET
    scenario: Annotated[_Scenario | None, Meta(description="Id of the scenario; it replaces the one before.")] | (
        UnsetType
    ) = UNSET
    overrides: (
        Annotated[
            tuple[_Override, ...],
            Meta(
                description="The exact set of published mocks that shall be active: any other activation is removed. "
                f"At most {MAX_OVERRIDES}; duplicates are folded, the first place kept."
            ),
        ]
        | UnsetType
    ) = UNSET
    global_delay_ms: Annotated[_Delay | None, Meta(description="Milliseconds that each response is delayed.")] | (
        UnsetType
    ) = UNSET
    global_delay_max_ms: (
        Annotated[
            _Delay | None,
            Meta(description="Where it is greater than globalDelayMs, the delay is drawn evenly between the two."),
        ]
        | UnsetType
    ) = UNSET
    label: (
        Annotated[
            Annotated[str, Meta(max_length=MAX_LABEL_LENGTH)] | None,
            Meta(description="A note for people."),
        ]
        | UnsetType
    ) = UNSET


_slug_rule = f"a slug of at most {MAX_SLUG_LENGTH} letters, digits, '.', '_' or '-', beginning with a letter or digit"
_delay_rule = f"a whole number of milliseconds from 0 to {MAX_DELAY_MS}, or null"

#: What each field must be, for the sentence of an error.
_RULES = {
    "project": _slug_rule,
    "environment": _slug_rule,
    "scenario": "a scenario id, 'scn_…', or null",
    "overrides": f"a list of at most {MAX_OVERRIDES} override ids, 'ovr_…'; send [] for none",
    "globalDelayMs": _delay_rule,
    "globalDelayMaxMs": _delay_rule,
    "label": f"a string of at most {MAX_LABEL_LENGTH} characters, or null",
}
_DELAYS = ("globalDelayMs", "globalDelayMaxMs")
_PLACE = re.compile(r"`\$\.(\w+)")
# The quantifiers are possessive: a header that nearly matches must not take time by the square of its length.
_JSON_TYPE = re.compile(rb'application/json\s*+(?:;\s*+charset\s*+=\s*+"?utf-8"?\s*+)?;?\s*+\Z', re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PLAIN_SEGMENT = re.compile(rb"[A-Za-z0-9._~-]+\Z")
#: One member of a list of entity tags (RFC 9110, 8.8.3), and the comma or end after it.
_ENTITY_TAG = re.compile(rb'[ \t]*+(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*+)"[ \t]*+)?(,|\Z)')
#: One member of a list of preferences (RFC 7240, 2), up to the comma or end after it: its name, and what else it says.
_PREFERENCE = re.compile(rb"""[ \t]*+([!#$%&'*+.^_`|~0-9A-Za-z-]*+)((?:"(?:[^"\\]|\\.)*+"|[^",])*+)(?:,|\Z)""")
_REVISION = re.compile(rb"(?:0|[1-9][0-9]{0,15})\Z")

_decode = msgspec.json.Decoder(SessionPatch).decode


def parse_query(raw: bytes, allowed: tuple[str, ...]) -> dict[str, str]:
    """Read the query string.

    Raises
    ------
    InvalidQueryError
        It names a parameter that the route does not take, names one twice, or is not UTF-8.
    """
    if not raw:
        return {}
    try:
        text = raw.decode("ascii")
        if "%" in text or "+" in text:
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
        else:
            fields = [field.partition("=") for field in text.split("&") if field]
            pairs = [(name, value) for name, _, value in fields]
    except UnicodeError:
        raise InvalidQueryError("The query string is not percent-encoded UTF-8; encode it so.") from None
    query = dict(pairs)
    for name in query:
        if name not in allowed:
            raise InvalidQueryError(f"Unknown query parameter {_shown(name)}; {_nearest(name, allowed)}")
    if len(query) != len(pairs):
        raise InvalidQueryError("A query parameter is given twice; name each once.")
    return query


def parse_limit(text: str | None, default: int) -> int:
    """Read a page's size; its bounds are checked by the operation that takes it."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InvalidQueryError("limit must be a whole number from 1 to 100.")
    return int(text)


def agree(name: str, in_query: str | None, in_body: str | UnsetType) -> str | None:
    """The project or environment that a PUT names in its query, its body, or both.

    Raises
    ------
    InvalidBodyError
        They differ.
    """
    if in_body is UNSET:
        return in_query
    if in_query is not None and in_query != in_body:
        raise InvalidBodyError(
            f"{name} is {_shown(in_query)} in the query and {_shown(in_body)} in the body; name it once."
        )
    return in_body


def decode_session_key(segment: bytes) -> str:
    """Decode a percent-encoded session key; what it may hold is the library's to say.

    Raises
    ------
    InvalidSessionKeyError
        It is not percent-encoded, or not UTF-8.
    """
    if _PLAIN_SEGMENT.match(segment):
        return segment.decode("ascii")
    if _BROKEN_ESCAPE.search(segment):
        # Taken literally, a key would have two spellings.
        raise InvalidSessionKeyError("The session key holds a '%' that begins no percent-encoded byte; send it as %25.")
    try:
        return unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidSessionKeyError(
            "The session key is not UTF-8; percent-encode the UTF-8 bytes of each special character."
        ) from None


def decode_override_id(segment: bytes) -> str:
    """Decode a percent-encoded override id.

    Raises
    ------
    InvalidOverrideError
        It is not UTF-8.
    """
    try:
        return unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidOverrideError("The override id is not UTF-8; it begins with 'ovr_' and is plain ASCII.") from None


def check_media_type(content_type: bytes | None, content_encoding: bytes | None) -> None:
    """Check that a body is declared to be JSON, and as it is.

    Raises
    ------
    UnsupportedMediaTypeError
    """
    if content_encoding is not None and content_encoding.lower() not in (b"", b"identity"):
        raise UnsupportedMediaTypeError("Send the body as it is, without a Content-Encoding.")
    if content_type == b"application/json" or (content_type is not None and _JSON_TYPE.match(content_type)):
        return
    raise UnsupportedMediaTypeError(
        "Send the body as JSON in UTF-8, with the header 'Content-Type: application/json' "
        "(curl: -H 'Content-Type: application/json'; its -d alone sends a form)."
    )


def decode_patch(body: bytes) -> SessionPatch:
    """Decode the body of a PUT.

    Raises
    ------
    InvalidJSONError
        It is not JSON, or names a field twice.
    InvalidBodyError
        A field is unknown, or is not what it must be; the sentence names it.
    """
    try:
        patch = _decode(body)
    except msgspec.ValidationError as exc:
        whole = _with_whole_numbers(body)
        if whole is None:
            raise _body_error(body, exc) from None
        patch = whole
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise _json_error(body, exc) from None
    # A field that is named twice is a typo, and decoders keep the last one in silence. Where there are as many colons
    # as fields, each was named once.
    if body.count(b":") != len(_RULES) - msgspec.structs.astuple(patch).count(UNSET):
        json.loads(body, object_pairs_hook=_refuse_duplicates)
    return patch


def parse_entity_tags(value: bytes, header: str, *, weak: bool) -> tuple[int, ...] | None:
    """Read ``If-Match`` or ``If-None-Match``: the revisions that it names, or None for ``*``.

    A tag that no revision can have is left out: it matches nothing. So is a weak tag unless `weak`: If-Match compares
    strongly, If-None-Match weakly (RFC 9110, 13.1).

    Raises
    ------
    InvalidQueryError
        It is not a list of entity tags.
    """
    if value.strip() == b"*":
        return None
    revisions: list[int] = []
    seen = position = 0
    while True:
        match = _ENTITY_TAG.match(value, position)
        if match is None:
            raise _tag_error(header)
        if match[2] is not None:
            seen += 1
            if _REVISION.match(match[2]) and (weak or match[1] is None):
                revisions.append(int(match[2]))
        position = match.end()
        if not match[3]:
            break
    if not seen:
        raise _tag_error(header)
    return tuple(revisions)


def prefers(value: bytes, name: bytes) -> bool:
    """Whether the header ``Prefer`` names a preference, without a value; its name in any case, with any parameters.

    What can't be read is no preference: the header is a hint (RFC 7240, 2).
    """
    position = 0
    while position < len(value):
        match = _PREFERENCE.match(value, position)
        if match is None:
            return False
        if match[1].lower() == name and match[2].lstrip()[:1] in (b"", b";"):
            return True
        position = match.end()
    return False


def _tag_error(header: str) -> InvalidQueryError:
    return InvalidQueryError(f'The header {header} must be * or the ETags of responses, in quotes, as in "7".')


def _with_whole_numbers(body: bytes) -> SessionPatch | None:
    """Read a body in which 250 is spelled 250.0: to JSON, and to clients whose numbers are floats, it is the same."""
    try:
        document = msgspec.json.decode(body)
        for name in _DELAYS:
            value = document.get(name)
            if isinstance(value, float) and value.is_integer():
                document[name] = int(value)
        return msgspec.convert(document, SessionPatch)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, AttributeError):
        return None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidJSONError(f"The body names {twice!r} twice; name each field once.")
    return document


def _json_error(body: bytes, exc: Exception) -> InvalidJSONError:
    if not body.strip():
        return InvalidJSONError("The body is empty; send a JSON object, {} to set nothing.")
    if isinstance(exc, RecursionError):
        return InvalidJSONError("The body is nested too deeply; send a flat JSON object.")
    if isinstance(exc, UnicodeError):
        return InvalidJSONError("The body is not UTF-8; encode it so.")
    return InvalidJSONError(f"The body is not valid JSON: {exc}.")


def _body_error(body: bytes, exc: msgspec.ValidationError) -> InvalidBodyError | InvalidJSONError:
    """Say what is wrong with a body of the wrong shape. It may not even be JSON: shape is checked on the way."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as broken:
        return _json_error(body, broken)
    if not isinstance(document, dict):
        return InvalidBodyError('The body must be a JSON object, as in {"label": "CI run 4821"}.')
    for name in document:
        if name not in _RULES:
            return InvalidBodyError(f"Unknown field {_shown(name)}; {_nearest(name, _RULES)}")
    place = _PLACE.search(str(exc))
    name = place[1] if place else ""
    return InvalidBodyError(f"{name} must be {_RULES[name]}." if name in _RULES else f"{exc}.")


def _nearest(name: str, known: Iterable[str]) -> str:
    """What the writer of an unknown name may have meant."""
    known = tuple(known)
    match difflib.get_close_matches(name[:64], known, 1):
        case [near]:
            return f"did you mean {near!r}?"
    return f"there are {', '.join(known)}."


def _shown(text: str) -> str:
    """Text from the request for a sentence, cut short."""
    shown = ascii(text) if any("\ud800" <= char <= "\udfff" for char in text) else repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "…"
