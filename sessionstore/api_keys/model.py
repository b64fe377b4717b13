"""API keys: their form and their records. A gateway checks them without asking Redis.

A key is ``fmk_`` and 32 random bytes in base64url. Redis holds its SHA-256 and a record, never the key itself. A fast
hash of that many random bits can't be reversed, and a slow one would only slow the gateway. The first twelve digits of
the hash are the key's public id, for lists, logs and `revoke`.

A gateway keeps all records in a `KeyRing` and loads them again every `REFRESH_INTERVAL_S`. So a wrong key costs no
round trip, and every gateway refuses a revoked key within `REVOCATION_BOUND_S`. While the records can't be loaded, keys
stay valid for a grace, and others can't be judged.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from typing import Literal

from msgspec import Struct

#: Keys that may be active at a time, and the most that a caller may allow: each gateway reloads all of them.
DEFAULT_ACTIVE_KEYS = 25
MAX_ACTIVE_KEYS = 1000
#: Revoked and expired keys that are kept as history.
MAX_ENDED_KEYS = 100
#: Code points of a key's name.
MAX_NAME_LENGTH = 200
#: Seconds of the longest window in which a key's requests are counted.
MAX_WINDOW_S = 999_999
#: Ms between two writes of one key's lastUsedAt.
USED_INTERVAL_MS = 60_000

_SECRET_BYTES = 32
_SECRET = re.compile(r"fmk_[A-Za-z0-9_-]{43}\Z")

_ID_LENGTH = 12
_ID = re.compile(rf"[0-9a-f]{{{_ID_LENGTH}}}\Z")


class ApiKey(Struct, frozen=True, rename="camel", kw_only=True):
    """The record of a key. Times are ms since 1970, in Redis time.

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

    # None has a default: a record that lacks its project must not open every project.
    id: str
    name: str
    project: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None

    def status(self, now_ms: int) -> Literal["active", "revoked", "expired"]:
        """Whether the key works at `now_ms`, in Redis time."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now_ms:
            return "expired"
        return "active"


class NewApiKey(Struct, frozen=True):
    """A new key. `secret` is the key itself: it is stored nowhere, and the repr omits it."""

    key: ApiKey
    secret: str

    def __repr__(self) -> str:
        return f"NewApiKey(key={self.key!r}, secret='fmk_…')"


class KeySnapshot(Struct, frozen=True):
    """All records at one Redis time, by the SHA-256 of their key.

    A record that is not in the form of this library is corrupt: `corrupt` has its id, and it opens nothing.
    """

    now: int
    keys: dict[str, ApiKey]
    corrupt: tuple[str, ...] = ()


class RequestCount(Struct, frozen=True):
    """The requests of a key in its window so far, and ms until the window ends."""

    requests: int
    left: int


def generate_secret() -> str:
    """Make a new key."""
    return "fmk_" + base64.urlsafe_b64encode(os.urandom(_SECRET_BYTES)).decode().rstrip("=")


def is_secret(text: str) -> bool:
    """Whether `text` has the form of a key."""
    return _SECRET.match(text) is not None


def hash_secret(secret: str) -> str:
    """SHA-256 of a key's text, in hexadecimal: what Redis holds."""
    return hashlib.sha256(secret.encode()).hexdigest()


def id_of(digest: str) -> str:
    """The public id of the key with this hash: its first twelve digits, as in scripts/lib/api_key.lua."""
    return digest[:_ID_LENGTH]


def is_id(text: str) -> bool:
    """Whether `text` has the form of a key's public id."""
    return _ID.match(text) is not None
