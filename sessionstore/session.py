"""A session, its identifiers, and the bounds of each property.

This module holds all rules of the HTTP API's vocabulary: the form of a session key, a slug and an id, and the bounds of
a delay.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, TypedDict

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import force_setattr

from .errors import (
    InvalidFieldError,
    InvalidInputError,
    InvalidOverrideError,
    InvalidQueryError,
    InvalidScenarioError,
    InvalidSessionKeyError,
    InvalidSlugError,
)

#: The header of a proxied request that names its session.
SESSION_HEADER = "x-flowmock-session"
#: Code points of a session key. The rest is cut off.
MAX_SESSION_KEY_LENGTH = 200
#: Characters of a project's or environment's slug.
MAX_SLUG_LENGTH = 64
#: Code points of a label.
MAX_LABEL_LENGTH = 200
#: Overrides that one session may have active.
MAX_OVERRIDES = 200
#: The most milliseconds of a delay.
MAX_DELAY_MS = 120_000
#: The least seconds of a session's own TTL; the most are its store's.
MIN_TTL_S = 60
#: Code points of the name that a writer gives itself.
MAX_ACTOR_LENGTH = 256
#: The last millisecond of the year 9999, since 1970: the last time that `format_time` can write.
MAX_TIME_MS = 253_402_300_799_999

#: A slug. It excludes ``:``, ``{`` and ``}``, which separate the parts of a Redis key.
SLUG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

OVERRIDE_PATTERN = r"^ovr_[A-Za-z0-9_-]{1,124}$"
SCENARIO_PATTERN = r"^scn_[A-Za-z0-9_-]{1,124}$"

# In Python `$` also matches before a line break at the end; in JSON Schema it does not.
_SLUG, _OVERRIDE_ID, _SCENARIO_ID = (
    re.compile(pattern[:-1] + r"\Z") for pattern in (SLUG_PATTERN, OVERRIDE_PATTERN, SCENARIO_PATTERN)
)
#: The line breaks that a key loses: LF, CR, and Unicode's line and paragraph separators.
_LINE_BREAKS = "\n\r\u2028\u2029"


# `SessionPatch` checks the bounds, with messages that say what to do. These describe them in the API's schema.
ScenarioId = Annotated[
    str,
    Meta(
        description="Id of the scenario; it replaces the previous one.", extra_json_schema={"pattern": SCENARIO_PATTERN}
    ),
]
OverrideIds = Annotated[
    tuple[Annotated[str, Meta(extra_json_schema={"pattern": OVERRIDE_PATTERN})], ...],
    Meta(
        description="The exact set of active published mocks: any other activation is removed. At most "
        f"{MAX_OVERRIDES}; duplicates are folded, the first place kept."
    ),
]
_DELAY_BOUNDS = {"minimum": 0, "maximum": MAX_DELAY_MS}
Delay = Annotated[int, Meta(description="Milliseconds that each response is delayed.", extra_json_schema=_DELAY_BOUNDS)]
DelayMax = Annotated[
    int,
    Meta(
        description="If it is greater than globalDelayMs, the delay is drawn evenly between the two. "
        "A smaller one has no effect.",
        extra_json_schema=_DELAY_BOUNDS,
    ),
]
TtlSeconds = Annotated[
    int,
    Meta(
        description="Seconds that the session lives after its last use. null: as long as the server keeps any session.",
        extra_json_schema={"minimum": MIN_TTL_S},
    ),
]
Label = Annotated[str, Meta(description="A note for people.", extra_json_schema={"maxLength": MAX_LABEL_LENGTH})]


class Effect(Struct, frozen=True, gc=False):
    """How a write took effect.

    Attributes
    ----------
    revision : int
        The revision of the environment that the views had to reach.
    confirmed : int
        Live views that confirmed the write.
    expired : int
        Views whose lease expired during the wait. They may show an older state, and know that they are stale.
    waited : bool
        False if the write returned at commit (``wait=False``).
    commit_s, effective_s : float
        Seconds until Redis had committed the write, and from then until every live view served it.
    replicas : int
        Replicas that had the write, if it asked for any.
    durable_s : float
        Seconds from the commit until they had it.
    """

    revision: int
    confirmed: int
    expired: int
    waited: bool
    commit_s: float
    effective_s: float
    replicas: int = 0
    durable_s: float = 0.0


class SessionDocument(Struct, frozen=True, rename="camel"):
    """A session as the HTTP API shows it: these fields, in this order."""

    project: Annotated[str, Meta(max_length=64, examples=["checkout"])]
    environment: Annotated[str, Meta(max_length=64, examples=["staging"])]
    session_key: Annotated[str, Meta(max_length=200, examples=["ci-42"])]
    label: Annotated[str, Meta(max_length=200, examples=["CI run 4821"])] | None
    scenario: Annotated[str, Meta(examples=["scn_paymentDeclined"])] | None
    overrides: Annotated[tuple[str, ...], Meta(examples=[["ovr_extraMock"]])]
    global_delay_ms: Annotated[int, Meta(ge=0, le=120_000)]
    global_delay_max_ms: Annotated[int, Meta(ge=0, le=120_000)]
    last_seen_at: Annotated[str, Meta(examples=["2026-06-23T12:00:00.000Z"])]


class SessionEntry(SessionDocument, frozen=True, rename="camel"):
    """A session as a list of the HTTP API shows it."""

    revision: Annotated[int, Meta(ge=1)]
    created_at: str
    expires_at: str
    modified_at: str | None
    modified_by: str | None
    looked_up_at: str | None


class SessionDetails(Struct, frozen=True, gc=False):
    """What Redis knows of a session, and views do not.

    Attributes
    ----------
    ttl_seconds : int or None
        The session's own TTL; None: the store's.
    modified_at : int or None
        When its state was last set, in ms since 1970, in Redis time. None: a release that did not record it.
    modified_by : str or None
        Who set it: the `actor` of a store or environment. Over HTTP, the API key's name and public id.
    looked_up_at : int or None
        When a proxy last looked it up. None: never.
    """

    ttl_seconds: int | None = None
    modified_at: int | None = None
    modified_by: str | None = None
    looked_up_at: int | None = None


class Session(Struct, frozen=True, kw_only=True, gc=False, eq=False):
    """The mock state of one session at one revision.

    Attributes
    ----------
    project, environment, session_key : str
        The session's name. The key is normalised.
    label : str or None
        A note for people.
    scenario : str or None
        Id of the active scenario, ``scn_…``.
    overrides : tuple of str
        Ids of the individually activated overrides, ``ovr_…``, in the order of activation.
    global_delay_ms, global_delay_max_ms : int
        Milliseconds, 0 to 120,000; see `delay_ms`.
    last_seen_at : int
        When a proxy last used the session or a write set it, in ms since 1970, in Redis time. A view has the time of
        the last change, because touches are not published.
    revision : int
        The environment's revision that set this state; the ETag of the HTTP API.
    created_at, expires_at : int
        Ms since 1970, in Redis time.
    details : SessionDetails or None
        Its own TTL, its last writer and its last look-up. None in a view.
    effect : Effect or None
        On the result of a write, how it took effect. Two sessions that differ only here or in `details` are equal.
    """

    project: str
    environment: str
    session_key: str
    label: str | None = None
    scenario: str | None = None
    overrides: tuple[str, ...] = ()
    global_delay_ms: int = 0
    global_delay_max_ms: int = 0
    last_seen_at: int = 0
    revision: int = 0
    created_at: int = 0
    expires_at: int = 0
    details: SessionDetails | None = None
    effect: Effect | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return msgspec.structs.astuple(self)[:_CONTENT] == msgspec.structs.astuple(other)[:_CONTENT]

    def __ne__(self, other: object) -> bool:
        # Struct's own compares by identity.
        return not self == other

    def __hash__(self) -> int:
        return hash(msgspec.structs.astuple(self)[:_CONTENT])

    def delay_ms(self, rng: random.Random | None = None) -> int:
        """Draw the delay of one response, in milliseconds.

        If `global_delay_max_ms` is greater than `global_delay_ms`, the delay is drawn evenly between the two, both
        included. Otherwise it is `global_delay_ms`.

        Parameters
        ----------
        rng : random.Random, optional
            The source of the delay, for repeatable tests. The default is the `random` module's generator.
        """
        if self.global_delay_max_ms <= self.global_delay_ms:
            return self.global_delay_ms
        return (rng or random).randint(self.global_delay_ms, self.global_delay_max_ms)

    def document(self) -> SessionDocument:
        """The session as the HTTP API shows it."""
        return SessionDocument(
            self.project,
            self.environment,
            self.session_key,
            self.label,
            self.scenario,
            self.overrides,
            self.global_delay_ms,
            self.global_delay_max_ms,
            format_time(self.last_seen_at),
        )

    def entry(self) -> SessionEntry:
        """The session as a list of the HTTP API shows it."""
        details = self.details or SessionDetails()
        return SessionEntry(
            **msgspec.structs.asdict(self.document()),
            revision=self.revision,
            created_at=format_time(self.created_at),
            expires_at=format_time(self.expires_at),
            modified_at=None if details.modified_at is None else format_time(details.modified_at),
            modified_by=details.modified_by,
            looked_up_at=None if details.looked_up_at is None else format_time(details.looked_up_at),
        )

    def to_json(self) -> bytes:
        """Encode to exactly the JSON of the HTTP API."""
        return _encode(self.document())


#: The number of fields that are compared: all of them but `details` and `effect`, which come last.
_CONTENT = len(Session.__struct_fields__) - 2


class SessionPatch(Struct, rename="camel", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The properties that a PUT sets. An UNSET property stays as it is; None clears it.

    Attributes
    ----------
    scenario : str or None
        A scenario's id, ``scn_`` and 1 to 124 letters, digits, ``_`` or ``-``.
    overrides : tuple of str
        Ids of published mocks, ``ovr_…``: exactly these are active afterwards. At most 200; duplicates are folded, the
        first place kept. None is an error; ``()`` deactivates all.
    global_delay_ms, global_delay_max_ms : int or None
        Milliseconds, 0 to 120,000.
    label : str or None
        At most 200 code points.
    ttl_seconds : int or None
        Seconds that the session lives after its last use: 60 to the store's TTL, which is the default. A new value may
        shorten its life.

    Raises
    ------
    InvalidFieldError, InvalidOverrideError
        Raised by the constructor. A msgspec decoder raises ``ValidationError`` with this as its cause.
    """

    scenario: ScenarioId | None | UnsetType = UNSET
    overrides: OverrideIds | UnsetType = UNSET
    global_delay_ms: Delay | None | UnsetType = UNSET
    global_delay_max_ms: DelayMax | None | UnsetType = UNSET
    label: Label | None | UnsetType = UNSET
    ttl_seconds: TtlSeconds | None | UnsetType = UNSET

    def __post_init__(self) -> None:
        # `calls.put` checks the form of the scenario's id: a wrong one may be an urlId, which only the catalog knows.
        if self.overrides is not UNSET:
            force_setattr(self, "overrides", validate_overrides(self.overrides))
        if self.global_delay_ms is not UNSET and self.global_delay_ms is not None:
            validate_delay(self.global_delay_ms, "globalDelayMs")
        if self.global_delay_max_ms is not UNSET and self.global_delay_max_ms is not None:
            validate_delay(self.global_delay_max_ms, "globalDelayMaxMs")
        if self.label is not UNSET and self.label is not None:
            validate_label(self.label)
        if self.ttl_seconds is not UNSET and self.ttl_seconds is not None:
            validate_ttl(self.ttl_seconds)


class SessionProperties(TypedDict, total=False):
    """The properties of `SessionPatch` as keyword arguments."""

    scenario: str | None | UnsetType
    overrides: Iterable[str] | UnsetType
    global_delay_ms: int | None | UnsetType
    global_delay_max_ms: int | None | UnsetType
    label: str | None | UnsetType
    ttl_seconds: int | None | UnsetType


def make_patch(properties: SessionProperties) -> SessionPatch:
    """Make a patch from keyword arguments; `overrides` may be any iterable."""
    return SessionPatch(**properties)  # type: ignore[arg-type]  # __post_init__ makes a tuple of any iterable


class Deletion(Struct, frozen=True, gc=False):
    """The result of `delete`; true if the session existed."""

    existed: bool
    effect: Effect | None = None

    def __bool__(self) -> bool:
        return self.existed


class BulkResult(Struct, frozen=True, gc=False):
    """What `delete_prefix` and `reset_prefix` return.

    Attributes
    ----------
    count : int
        Sessions that the call changed.
    more : bool
        Whether there are more to change: a call changes 1,000.
    effect : Effect or None
        How the last change took effect, and with it all others.
    """

    count: int
    more: bool
    effect: Effect | None = None


class LiveView(Struct, frozen=True, gc=False, rename="camel"):
    """A view with a lease: writers wait for it.

    Attributes
    ----------
    id : str
        Id of the lease. A view that loses its lease gets another id.
    host, pid, version : str, int, str
        The view's host, process and release of this library, as it reports them.
    applied_revision : int
        The last revision that the view has reported as applied. It reports with each renewal, and at once if a writer
        waits.
    lag : int
        The number of revisions that the environment is ahead of it.
    lease_left_ms : int
        Milliseconds until its lease expires.
    """

    id: str
    host: str
    pid: int
    version: str
    applied_revision: int
    lag: int
    lease_left_ms: int


class LiveViews(Struct, frozen=True):
    """The live views of an environment.

    Attributes
    ----------
    revision : int
        The environment's revision.
    views : tuple of LiveView
        In the order in which their leases expire.
    elsewhere : dict of str to int
        How many live views each other registered environment of the project has, if it has any.
    """

    revision: int
    views: tuple[LiveView, ...]
    elsewhere: dict[str, int]


class ViewDocument(Struct, frozen=True, rename="camel"):
    """A live view as the HTTP API shows it."""

    host: Annotated[str, Meta(description="The host that the proxy runs on, as it says.", examples=["proxy-1"])]
    pid: int
    version: Annotated[str, Meta(description="The proxy's release of the library.", examples=["0.2.0"])]
    revision: Annotated[int, Meta(description="The last revision that it has reported as applied.")]
    lease_left_ms: Annotated[int, Meta(description="Milliseconds until its lease expires.")]


class ViewListDocument(Struct, frozen=True):
    """The live views of an environment as the HTTP API shows them."""

    revision: Annotated[int, Meta(description="The environment's revision.")]
    views: tuple[ViewDocument, ...]
    elsewhere: Annotated[
        dict[str, int],
        Meta(description="How many live views the project's other environments have.", examples=[{"uat": 2}]),
    ]


class LiveCounts(Struct, frozen=True, gc=False):
    """The number of live sessions and of live views of an environment."""

    sessions: int
    views: int


class SessionPage(Struct, frozen=True):
    """One page of an environment's sessions, newest seen first; `next_cursor` is None on the last.

    Any page may be short, even empty, if many sessions have just expired. `sessions` lacks those whose records can't be
    read: `corrupt` has their session keys. Deleting such a session removes its record.
    """

    sessions: tuple[Session, ...]
    next_cursor: str | None
    corrupt: tuple[str, ...] = ()


_encode = msgspec.json.Encoder().encode


def format_time(ms: int) -> str:
    """Milliseconds since 1970 as the HTTP API writes a time: ``2026-06-23T12:00:00.000Z``; the year 9999 at most."""
    ms = min(ms, MAX_TIME_MS)
    return f"{_format_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=16)
def _format_second(seconds: int) -> str:
    # Most of these times are recent.
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def parse_time(text: str) -> int:
    """Milliseconds since 1970 of a time that the HTTP API wrote.

    Raises
    ------
    ValueError
    """
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)


_EPOCH = datetime.fromtimestamp(0, UTC)


def normalize_session_key(key: str) -> str:
    """Normalise a session key to the form that is stored and compared.

    Line breaks (CR, LF, U+2028, U+2029) are removed, surrounding white space is trimmed, and the rest is cut at 200
    code points. Normalising twice changes nothing. The result may be empty; `validate_session_key` rejects that.
    """
    return _without_line_breaks(key)[:MAX_SESSION_KEY_LENGTH].rstrip()


def _without_line_breaks(key: str) -> str:
    # A hostile header may have megabytes, so each step must be fast. Line breaks are white space, so the first step
    # removes those that come before the key.
    key = key.lstrip()
    for line_break in _LINE_BREAKS:
        key = key.replace(line_break, "")
    return key


def shorten_session_key(key: str) -> str:
    """Normalise a session key. Shorten a long one so that keys that begin alike stay different.

    A key of more than 200 code points keeps its first 183. Then come ``~`` and 16 digits of the SHA-256 of the whole.
    """
    key = _without_line_breaks(key).rstrip()
    if len(key) <= MAX_SESSION_KEY_LENGTH:
        return key
    suffix = "~" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return key[: MAX_SESSION_KEY_LENGTH - len(suffix)] + suffix


def session_key_from_header(value: bytes | str | None) -> str | None:
    """Take a session key from a raw header: UTF-8 if valid, else Latin-1. None if it is missing or empty.

    A ``str`` is a header that a framework has decoded: as Latin-1, like ASGI and WSGI frameworks, or as UTF-8 with
    surrogate escapes, like mitmproxy. Its bytes are recovered.
    """
    raw = _header_bytes(value) if isinstance(value, str) else value
    if not isinstance(raw, bytes):
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return normalize_session_key(text) or None


def _header_bytes(text: str) -> bytes | None:
    for encoding, errors in (("latin-1", "strict"), ("utf-8", "surrogateescape")):
        with suppress(UnicodeEncodeError):
            return text.encode(encoding, errors)
    return None  # a lone surrogate that no header decodes to


def validate_session_key(key: str, normalize: Callable[[str], str] = normalize_session_key) -> str:
    """Normalise a session key and check it.

    Raises
    ------
    InvalidSessionKeyError
        It is not text, is empty after normalising, or holds control characters or lone surrogates.
    """
    if not isinstance(key, str):
        raise InvalidSessionKeyError(f"The session key must be text, not {type(key).__name__}.")
    key = normalize(key)
    if not key:
        raise InvalidSessionKeyError("The session key is empty; name the session with at least one visible character.")
    if not key.isprintable() and any(unicodedata.category(char) in ("Cc", "Cs") for char in key):
        raise InvalidSessionKeyError("The session key holds a control character; use printable text.")
    return key


def validate_key_prefix(prefix: str) -> str:
    """Check the beginning of session keys, which is compared byte by byte: 1 to 200 characters.

    Raises
    ------
    InvalidQueryError
        It is too short or too long, or no normalised key begins so.
    """
    if not isinstance(prefix, str) or not 1 <= len(prefix) <= MAX_SESSION_KEY_LENGTH:
        raise InvalidQueryError(f"prefix must have 1 to {MAX_SESSION_KEY_LENGTH} characters.")
    try:
        possible = validate_session_key(prefix + "x").startswith(prefix)
    except InvalidSessionKeyError:
        possible = False
    if not possible:
        raise InvalidQueryError(
            "No session key has this prefix: a key has no line break or control character, nor white space at its ends."
        )
    return prefix


def hash_session_key(session_key: str) -> str:
    """The first digits of a session key's SHA-256, for logs, which must not hold the key."""
    return hashlib.sha256(session_key.encode()).hexdigest()[:12]


def is_slug(value: str) -> bool:
    """Whether a text may name a project or an environment."""
    return _SLUG.match(value) is not None


def validate_slug(value: str, what: str) -> str:
    """Check a project's or environment's slug; `what` names it in the message.

    Raises
    ------
    InvalidSlugError
    """
    if not isinstance(value, str) or not is_slug(value):
        raise InvalidSlugError(
            f"The {what} is not a slug: use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit."
        )
    return value


def validate_label(value: str) -> str:
    """Check a label: text of at most 200 code points, without lone surrogates."""
    if not isinstance(value, str):
        raise InvalidFieldError(f"label must be a string or null, not {type(value).__name__}.")
    if len(value) > MAX_LABEL_LENGTH:
        raise InvalidFieldError(f"label must be at most {MAX_LABEL_LENGTH} characters long; it has {len(value)}.")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidFieldError("label holds a lone surrogate, which is not text; send valid Unicode.")
    return value


def validate_delay(value: int, what: str) -> int:
    """Check a delay: a whole number of milliseconds, 0 to 120,000."""
    if type(value) is not int:
        raise InvalidFieldError(f"{what} must be a whole number of milliseconds or null, not {type(value).__name__}.")
    if not 0 <= value <= MAX_DELAY_MS:
        raise InvalidFieldError(f"{what} must be between 0 and {MAX_DELAY_MS} milliseconds.")
    return value


def validate_ttl(value: int) -> int:
    """Check a session's own TTL: at least 60 whole seconds. The call that sends it knows the upper bound."""
    if type(value) is not int:
        raise InvalidFieldError(f"ttlSeconds must be a whole number of seconds or null, not {type(value).__name__}.")
    if value < MIN_TTL_S:
        raise InvalidFieldError(f"ttlSeconds must be at least {MIN_TTL_S} seconds.")
    return value


def validate_actor(value: str) -> str:
    """Check the name that a writer gives itself: printable text of at most 256 characters; empty for none.

    Raises
    ------
    InvalidInputError
    """
    if not isinstance(value, str) or len(value) > MAX_ACTOR_LENGTH or not value.isprintable():
        raise InvalidInputError(f"actor must be printable text of at most {MAX_ACTOR_LENGTH} characters.")
    return value


def validate_scenario(value: str) -> str:
    """Check the form of a scenario's id."""
    if not isinstance(value, str):
        raise InvalidScenarioError(f"scenario must be a string or null, not {type(value).__name__}.")
    if not _SCENARIO_ID.match(value):
        sentence = f"{_shown(value)} is not a scenario id: use 'scn_' and 1 to 124 letters, digits, '_' or '-'."
        error = InvalidScenarioError(sentence)
        error.unknown = value
        raise error
    return value


def validate_override(value: str) -> str:
    """Check the form of an override's id."""
    if not isinstance(value, str) or not _OVERRIDE_ID.match(value):
        raise InvalidOverrideError(
            f"{_shown(value)} is not an override id: use 'ovr_' and 1 to 124 letters, digits, '_' or '-'."
        )
    return value


def validate_overrides(values: Iterable[str]) -> tuple[str, ...]:
    """Check a set of override ids and fold duplicates, the first place kept; at most 200 may remain."""
    if type(values) is not tuple and (isinstance(values, str | bytes) or not isinstance(values, Iterable)):
        raise InvalidFieldError("overrides must be a list of override ids; send [] for none.")
    ids = tuple(dict.fromkeys(validate_override(value) for value in values))
    if len(ids) > MAX_OVERRIDES:
        raise InvalidFieldError(f"overrides must hold at most {MAX_OVERRIDES} ids; there are {len(ids)}.")
    return ids


def _shown(value: object) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
