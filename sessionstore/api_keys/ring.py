"""A gateway's copy of all API keys: it checks keys without asking Redis."""

from __future__ import annotations

import enum
import hmac
from collections.abc import Iterable, Mapping

from ..errors import InvalidFieldError
from .model import USED_INTERVAL_MS, ApiKey, KeySnapshot, hash_secret, id_of, is_secret

#: Seconds between two loads of a ring.
REFRESH_INTERVAL_S = 0.25

#: Seconds within which every gateway refuses a revoked key, if it can load the records.
REVOCATION_BOUND_S = 1.0


class Refusal(enum.Enum):
    """Why a `KeyRing` rejects a key. Only for logs and metrics: for a client, all but `UNAVAILABLE` look the same."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    #: The records are too old to judge the key: 503, not 401.
    UNAVAILABLE = "unavailable"


class KeyRing:
    """A gateway's copy of all records: it authenticates keys without I/O.

    Load it with the answer of `snapshot` every `REFRESH_INTERVAL_S`. Nothing here reads a clock. `now` and `sent_at`
    are seconds of a clock that never goes back and that runs on while the host sleeps (Linux: CLOCK_BOOTTIME), so that
    old records are not trusted after a sleep.

    A new key is unknown until the next load. A gateway may let a request with an unknown key wait for that load. This
    costs Redis nothing and slows guessing down.

    Parameters
    ----------
    bootstrap : iterable of str
        Keys for every project, given when the gateway starts. They are not in Redis and can't be revoked, so they work
        even if the records are old.
    grace_s : float
        Seconds for which a loaded key stays valid while no newer records can be loaded, at least `REVOCATION_BOUND_S`.
        A revocation that can't be loaded waits as long.

    Raises
    ------
    InvalidFieldError
        A bootstrap key is malformed.
    """

    def __init__(self, bootstrap: Iterable[str] = (), *, grace_s: float = REVOCATION_BOUND_S) -> None:
        self._grace_s = max(grace_s, REVOCATION_BOUND_S)
        self._bootstrap: dict[str, tuple[str, ApiKey]] = {}
        for secret in bootstrap:
            if not is_secret(secret):
                raise InvalidFieldError("An API key is 'fmk_' and 43 letters, digits, '-' or '_'; this one is not.")
            digest = hash_secret(secret)
            self._bootstrap[id_of(digest)] = digest, _bootstrap_key(id_of(digest))
        self._by_id: dict[str, tuple[str, ApiKey]] = {}
        self._loaded_at: float | None = None
        self._redis_ms = 0
        self._used: dict[str, int] = {}

    def load(self, snapshot: KeySnapshot, sent_at: float) -> None:
        """Take new records. They show every revocation before `sent_at`, when the request was sent."""
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
        """The age of the records in seconds; infinite before the first load."""
        return float("inf") if self._loaded_at is None else now - self._loaded_at

    def is_current(self, now: float) -> bool:
        """Whether the records are at most `REVOCATION_BOUND_S` old, so that a key that they lack is unknown."""
        return self.age_s(now) <= REVOCATION_BOUND_S

    def authenticate(self, secret: str | None, now: float) -> ApiKey | Refusal:
        """Return the key's record, or why the key is rejected; None: the request had no key.

        Timing reveals nothing about a nearly correct key: a guesser can't control the hash that finds the record, and
        the comparison takes constant time.
        """
        if secret is None:
            return Refusal.MISSING
        well_formed = is_secret(secret)
        digest = hash_secret(secret) if well_formed else ""
        known = _find(self._bootstrap, digest)
        if known is not None:
            return known
        if self._loaded_at is None or self.age_s(now) > self._grace_s:
            return Refusal.UNAVAILABLE
        # An upper bound: Redis read its time after the request was sent.
        redis_ms = self._redis_ms + round(self.age_s(now) * 1000)
        key = _find(self._by_id, digest)
        if key is not None and key.status(redis_ms) == "active":
            self._used[key.id] = redis_ms
            return key
        if not self.is_current(now):
            # One answer for all of them, so that it tells nothing about keys.
            return Refusal.UNAVAILABLE
        if key is not None:
            return Refusal(key.status(redis_ms))
        return Refusal.UNKNOWN if well_formed else Refusal.MALFORMED

    def admits_anybody(self, now: float) -> bool:
        """Whether any key is accepted."""
        redis_ms = self._redis_ms + (round(self.age_s(now) * 1000) if self._loaded_at is not None else 0)
        return bool(self._bootstrap) or any(key.status(redis_ms) == "active" for _, key in self._by_id.values())

    def due_uses(self) -> dict[str, int]:
        """Uses for `mark_used`: key id → ms. A key has one each `USED_INTERVAL_MS` at most.

        A use stays due until a load shows that it was recorded, so a failed call is repeated.
        """
        return {
            key_id: used_at
            for key_id, used_at in self._used.items()
            if used_at - (self._by_id[key_id][1].last_used_at or 0) >= USED_INTERVAL_MS
        }


def _bootstrap_key(key_id: str) -> ApiKey:
    return ApiKey(
        id=key_id,
        name="bootstrap",
        project=None,
        created_at=0,
        expires_at=None,
        revoked_at=None,
        last_used_at=None,
    )


def _find(records: Mapping[str, tuple[str, ApiKey]], digest: str) -> ApiKey | None:
    stored, key = records.get(id_of(digest), ("", None))
    return key if hmac.compare_digest(stored, digest) else None
