"""API keys: what they look like, how they are stored, and how a gateway checks them without asking Redis.

A key is ``fmk_`` and 32 random bytes in base64url. Redis holds its SHA-256 and a record, never the key itself: with
that many random bits a plain hash can't be reversed, and a slow one would only slow the gateway. The first twelve
digits of the hash are the key's public id, which is what lists, logs and `revoke` name it by.

A gateway keeps all records in a `KeyRing` and loads them again every `REFRESH_INTERVAL_S`. So a wrong key costs no
round trip, and a revoked one is refused on every gateway within `REVOCATION_BOUND_S`: a ring whose records are older
than that admits nobody, and the gateway answers 503 until Redis is back.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import os
import re
from collections.abc import Generator, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

from msgspec import Struct

from .codec import Payload, Reply, decoder
from .commands import Call
from .errors import ApiKeyNotFoundError, CorruptDataError, InvalidFieldError, SessionStoreError, TooManyApiKeysError
from .keys import StoreKeys
from .scripts import load_script
from .session import MAX_TIME_MS, validate_slug

__all__ = [
    # values
    "ApiKey",
    "KeySnapshot",
    "NewApiKey",
    # a gateway's side
    "KeyRing",
    "Refusal",
    # the form of a key
    "generate_secret",
    "hash_secret",
    "is_secret",
    # bounds
    "MAX_ACTIVE_KEYS",
    "MAX_ENDED_KEYS",
    "MAX_NAME_LENGTH",
    "REFRESH_INTERVAL_S",
    "REVOCATION_BOUND_S",
    "USED_INTERVAL_MS",
    # operations
    "create",
    "list_keys",
    "mark_used",
    "revoke",
    "snapshot",
]

#: Keys that may be active at a time.
MAX_ACTIVE_KEYS = 25
#: Revoked and expired keys that are kept for a look back.
MAX_ENDED_KEYS = 100
#: Code points of a key's name.
MAX_NAME_LENGTH = 200
#: Ms between two writes of one key's lastUsedAt.
USED_INTERVAL_MS = 60_000
#: Seconds between two loads of a ring.
REFRESH_INTERVAL_S = 0.25
#: Seconds within which every gateway refuses a revoked key.
REVOCATION_BOUND_S = 1.0

#: Digits of the hash that are the public id; scripts/lib/api_key.lua has the same.
_ID_LENGTH = 12
_SECRET_BYTES = 32
_SECRET = re.compile(r"fmk_[A-Za-z0-9_-]{43}\Z")
_ID = re.compile(r"[0-9a-f]{12}\Z")
#: How many times a new key is made where another has the same id: the second time is already a wonder.
_ATTEMPTS = 5

T = TypeVar("T")
R = TypeVar("R", bound=Reply)

KeyOperation = Generator[Call[Any], Any, T]


class ApiKey(Struct, frozen=True, rename="camel", kw_only=True):
    """What is known of a key; times are ms since 1970, in Redis time.

    Attributes
    ----------
    id : str
        Public: twelve hexadecimal digits, for lists, logs and `revoke`.
    name : str
        For people.
    project : str or None
        The one project that the key may use; None: every project.
    created_at, expires_at, revoked_at, last_used_at : int or None
        `last_used_at` is exact to a minute.
    """

    id: str
    name: str
    project: str | None = None
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None

    def status(self, now_ms: int) -> Literal["active", "revoked", "expired"]:
        """Whether the key works at `now_ms`, in Redis time."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now_ms:
            return "expired"
        return "active"


class NewApiKey(Struct, frozen=True):
    """A key that was just made. `secret` is the key itself, which nothing can show again; it is not in the repr."""

    key: ApiKey
    secret: str

    def __repr__(self) -> str:
        return f"NewApiKey(key={self.key!r}, secret='fmk_…')"


class KeySnapshot(Struct, frozen=True):
    """All records at one Redis time, by the SHA-256 of their key."""

    now: int
    keys: dict[str, ApiKey]


class _KeyReply(Reply, frozen=True, kw_only=True):
    now: int = 0
    key: ApiKey | None = None


class _UsedReply(Struct, frozen=True):
    now: int
    written: int


def generate_secret() -> str:
    """Make a new key."""
    return "fmk_" + base64.urlsafe_b64encode(os.urandom(_SECRET_BYTES)).decode().rstrip("=")


def is_secret(text: str) -> bool:
    """Whether `text` has the form of a key."""
    return _SECRET.match(text) is not None


def hash_secret(secret: str) -> str:
    """SHA-256 of a key's text, in hexadecimal: what Redis holds."""
    return hashlib.sha256(secret.encode()).hexdigest()


# The operations. Each yields its calls, as those in operations.py do.


def create(
    keys: StoreKeys, name: str, *, project: str | None = None, expires_at: int | None = None
) -> KeyOperation[NewApiKey]:
    """Make a key and store its hash."""
    name = _validate_name(name)
    if project is not None:
        validate_slug(project, "project")
    if expires_at is not None and (type(expires_at) is not int or not 0 <= expires_at <= MAX_TIME_MS):
        raise InvalidFieldError(
            "expires_at must be a time in milliseconds since 1970, a whole number, and no later than the year 9999."
        )
    for _ in range(_ATTEMPTS):
        secret = generate_secret()
        try:
            reply = yield Call(
                load_script("key_create"),
                (keys.api_keys,),
                (
                    hash_secret(secret),
                    name,
                    project or "",
                    "" if expires_at is None else expires_at,
                    MAX_ACTIVE_KEYS,
                    MAX_ENDED_KEYS,
                ),
                partial(_checked, _key_reply),
                writes=True,
            )
        except _IdTakenError:
            continue
        return NewApiKey(reply.key, secret)
    raise CorruptDataError("Every new key had the id of another one; is the system's random number source broken?")


def snapshot(keys: StoreKeys) -> KeyOperation[KeySnapshot]:
    """Read every record, for a `KeyRing`."""
    reply: KeySnapshot = yield Call(load_script("key_list"), (keys.api_keys,), (), _snapshot_reply)
    return reply


def list_keys(keys: StoreKeys) -> KeyOperation[tuple[ApiKey, ...]]:
    """Read every record, oldest first."""
    reply = yield from snapshot(keys)
    return tuple(sorted(reply.keys.values(), key=lambda key: (key.created_at, key.id)))


def revoke(keys: StoreKeys, key_id: str) -> KeyOperation[ApiKey]:
    """Revoke one key."""
    reply = yield Call(
        load_script("key_revoke"), (keys.api_keys,), (_validate_id(key_id),), partial(_checked, _key_reply), writes=True
    )
    key: ApiKey = reply.key
    return key


def mark_used(keys: StoreKeys, used: Mapping[str, int]) -> KeyOperation[int]:
    """Note when keys were last used; returns how many records that changed."""
    if not used:
        return 0
    pairs: list[str | int] = []
    for key_id, used_at_ms in used.items():
        if type(used_at_ms) is not int or not 0 <= used_at_ms < 2**53:
            raise InvalidFieldError("A key's time of use must be milliseconds since 1970, a whole number.")
        pairs += (_validate_id(key_id), used_at_ms)
    reply = yield Call(load_script("key_used"), (keys.api_keys,), (USED_INTERVAL_MS, *pairs), _used_reply, writes=True)
    written: int = reply.written
    return written


class Refusal(enum.Enum):
    """Why a `KeyRing` admits nobody. For logs and metrics; outside, all but `UNAVAILABLE` must look the same."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    #: The records are older than the bound, so whether the key was revoked is not known: 503, not 401.
    UNAVAILABLE = "unavailable"


class KeyRing:
    """A gateway's copy of all records: it tells who a key belongs to, without I/O.

    Load it with the answer of `snapshot` every `REFRESH_INTERVAL_S`. Nothing here reads a clock: `now` and `sent_at`
    are seconds of one that never goes back and, so that a host which slept does not trust what it knew before, goes on
    while the host sleeps (Linux: CLOCK_BOOTTIME).

    A key that was created a moment ago is unknown until the next load. A gateway that wants such a key to work at once
    lets a request with an unknown key wait for the next load, which costs Redis nothing and slows guessing down.

    Parameters
    ----------
    bootstrap : iterable of str
        Keys for every project that the gateway was started with. They are not in Redis and can't be revoked, so they
        are admitted whether or not the records are current.

    Raises
    ------
    InvalidFieldError
        A bootstrap key has not the form of a key.
    """

    def __init__(self, bootstrap: Iterable[str] = ()) -> None:
        self._bootstrap: dict[str, tuple[str, ApiKey]] = {}
        for secret in bootstrap:
            if not is_secret(secret):
                raise InvalidFieldError("An API key is 'fmk_' and 43 letters, digits, '-' or '_'; this one is not.")
            digest = hash_secret(secret)
            self._bootstrap[_id_of(digest)] = digest, ApiKey(id=_id_of(digest), name="bootstrap", created_at=0)
        self._by_id: dict[str, tuple[str, ApiKey]] = {}
        self._loaded_at: float | None = None
        self._redis_ms = 0
        self._used: dict[str, int] = {}

    def load(self, snapshot: KeySnapshot, sent_at: float) -> None:
        """Take new records. `sent_at` is when they were asked for: whatever was revoked before then is in them."""
        if self._loaded_at is not None and sent_at < self._loaded_at:
            return
        self._by_id = {key.id: (digest, key) for digest, key in snapshot.keys.items()}
        self._loaded_at = sent_at
        self._redis_ms = snapshot.now
        self._used = {
            key_id: used_at
            for key_id, used_at in self._used.items()
            if key_id in self._by_id and used_at > (self._by_id[key_id][1].last_used_at or 0)
        }

    def age_s(self, now: float) -> float:
        """Seconds since the records were asked for; infinite before the first load."""
        return float("inf") if self._loaded_at is None else now - self._loaded_at

    def is_current(self, now: float) -> bool:
        """Whether keys can be told apart: the records are no older than `REVOCATION_BOUND_S`."""
        return self.age_s(now) <= REVOCATION_BOUND_S

    def authenticate(self, secret: str | None, now: float) -> ApiKey | Refusal:
        """Tell whose key this is, or why nobody is admitted; None: the request had none.

        The time it takes tells nothing of a key that is nearly right: a record is found by the hash, which a guesser
        can't steer, and compared in constant time.
        """
        if secret is None:
            return Refusal.MISSING
        well_formed = is_secret(secret)
        digest = hash_secret(secret) if well_formed else ""
        known = _find(self._bootstrap, digest)
        if known is not None:
            return known
        if not self.is_current(now):
            return Refusal.UNAVAILABLE
        if not well_formed:
            return Refusal.MALFORMED
        key = _find(self._by_id, digest)
        if key is None:
            return Refusal.UNKNOWN
        # Redis's clock cannot be further than this: its time was read after the request for it was sent.
        redis_ms = self._redis_ms + round(self.age_s(now) * 1000)
        match key.status(redis_ms):
            case "revoked":
                return Refusal.REVOKED
            case "expired":
                return Refusal.EXPIRED
        self._used[key.id] = redis_ms
        return key

    def admits_anybody(self, now: float) -> bool:
        """Whether any key works."""
        redis_ms = self._redis_ms + (round(self.age_s(now) * 1000) if self._loaded_at is not None else 0)
        return bool(self._bootstrap) or any(key.status(redis_ms) == "active" for _, key in self._by_id.values())

    def due_uses(self) -> dict[str, int]:
        """Uses that `mark_used` should be told of: id → ms; none of a key within `USED_INTERVAL_MS` of its last.

        They stay due until a load shows that they were noted, so one that fails is sent again.
        """
        return {
            key_id: used_at
            for key_id, used_at in self._used.items()
            if used_at - (self._by_id[key_id][1].last_used_at or 0) >= USED_INTERVAL_MS
        }


def _find(records: Mapping[str, tuple[str, ApiKey]], digest: str) -> ApiKey | None:
    stored, key = records.get(_id_of(digest), ("", None))
    return key if hmac.compare_digest(stored, digest) else None


def _id_of(digest: str) -> str:
    return digest[:_ID_LENGTH]


def _validate_name(name: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InvalidFieldError("A key needs a name, so that people know what it is for.")
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidFieldError(f"A key's name must be printable and at most {MAX_NAME_LENGTH} characters long.")
    return name


def _validate_id(key_id: str) -> str:
    # What is wrong is not quoted: it may be the key itself.
    if not isinstance(key_id, str) or not _ID.match(key_id):
        raise InvalidFieldError("A key is named by its id, twelve hexadecimal digits, as the list of keys shows it.")
    return key_id


_key_reply = decoder(_KeyReply)
_snapshot_reply = decoder(KeySnapshot)
_used_reply = decoder(_UsedReply)


class _IdTakenError(SessionStoreError):
    """Another key has the same id."""


def _checked(decode: Any, payload: Payload) -> Any:
    reply = decode(payload)
    match reply.status:
        case "ok":
            return reply
        case "taken":
            raise _IdTakenError
        case "too_many_keys":
            raise TooManyApiKeysError(f"There are {reply.detail} active API keys, the most there can be; revoke one.")
        case "expires_in_past":
            raise InvalidFieldError("expires_at is in the past, by Redis's clock; give a later time.")
        case "key_not_found":
            raise ApiKeyNotFoundError(f"There is no API key with the id {reply.detail!r}; the list of keys shows all.")
    raise CorruptDataError(f"A script answered the status {reply.status!r}, which this version does not know.")
