"""Checks API keys.

The gateway holds the SHA-256 of each key, never a key, and compares in constant time. It checks a key against its own
copy of all records (`sessionstore.api_keys.ring.KeyRing`), which a task reloads several times a second. So a wrong key
costs Redis nothing, and a revoked key is refused within a second. While the records can't be loaded, loaded keys stay
valid for a grace, and no other key can be judged: 503. Logs name a key by its public id, the first digits of its hash.

A well-formed key that is unknown waits for the next load, so that a key made a moment ago works at once. At most
`MAX_WAITING` requests wait at a time. Every other refusal is immediate: also this one, if the last load has failed.
Valid keys never wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable

from sessionstore import AsyncSessionStore
from sessionstore.api_keys.model import ApiKey, KeySnapshot
from sessionstore.api_keys.ring import REFRESH_INTERVAL_S, REVOCATION_BOUND_S, KeyRing, Refusal
from sessionstore.clock import lease_clock
from sessionstore.errors import SessionStoreError, StoreUnavailableError
from sessionstore.variables import show_seconds

from .errors import RequestError
from .logs import with_cause

log = logging.getLogger("gateway")

#: The scheme in any case, and the form of a key. Nothing else is worth hashing.
_AUTHORIZATION = re.compile(r"(?i:bearer|token) +(fmk_[A-Za-z0-9_-]{43})\Z")

_NO_HEADER = "The request has no Authorization header; send an API key in it, as in 'Authorization: Bearer fmk_…'."
_NO_VALID_KEY = (
    "The API key is malformed, unknown, revoked or expired; send a valid one, as in 'Authorization: Bearer fmk_…'."
)

#: Seconds that a request with an unknown key waits for the next load, and such requests at a time.
_SECOND_LOOK_S = 2 * REFRESH_INTERVAL_S
MAX_WAITING = 100
#: Seconds without recording the use of keys after that has failed.
_RETRY_USES_S = 10.0

#: Bounds of the grace, and its default: long enough for a person to repair what no failover does.
GRACE_RANGE_S = (REVOCATION_BOUND_S, 86_400.0)
DEFAULT_GRACE_S = 900.0


class Authenticator:
    """Knows the keys.

    Parameters
    ----------
    bootstrap : str, optional
        The key that the gateway was started with. It opens every project, even while Redis is unreachable.
    store : AsyncSessionStore, optional
        Holds all other keys; they work while `keeping` runs.
    on_refusal : callable, optional
        Called with the reason of each refusal, which the answer does not tell.
    on_load : callable, optional
        Called with the records of each load.
    grace_s : float
        Seconds for which loaded keys stay valid while they can't be loaded again.
    """

    def __init__(
        self,
        bootstrap: str | None = None,
        store: AsyncSessionStore | None = None,
        *,
        on_refusal: Callable[[Refusal], object] = lambda reason: None,
        on_load: Callable[[KeySnapshot], object] = lambda snapshot: None,
        grace_s: float = DEFAULT_GRACE_S,
    ) -> None:
        self.ring = KeyRing([] if bootstrap is None else [bootstrap], grace_s=grace_s)
        self._grace_s = grace_s
        self._bootstrapped = bootstrap is not None
        self._had_keys = False
        self._store = store
        self._on_refusal = on_refusal
        self._on_load = on_load
        self._corrupt: frozenset[str] = frozenset()
        #: set and replaced at the end of each load, successful or not
        self._tried = asyncio.Event()
        #: when the last load was sent, by `lease_clock` like all times here
        self._loaded_from = float("-inf")
        self._waiting = 0
        #: why the last load failed
        self._trouble: str | None = None
        self._retry_uses_at = float("-inf")

    async def authenticate(self, authorization: str | None) -> ApiKey:
        """Find the record of the key in an ``Authorization`` header.

        Raises
        ------
        RequestError
            unauthorized: there is no header; or the key is malformed, unknown, revoked or expired, which the error
            does not tell apart.
        StoreUnavailableError
            The records are too old to judge the key.
        """
        match = _AUTHORIZATION.match(authorization or "")
        secret = None if match is None else match[1]
        key = self.ring.authenticate(secret, lease_clock())
        if key is Refusal.UNKNOWN and self._store is not None and self._waiting < MAX_WAITING:
            loaded = await self._next_load()
            key = self.ring.authenticate(secret, lease_clock())
            if key is Refusal.UNKNOWN and not loaded:
                # It may have been made since the last load.
                key = Refusal.UNAVAILABLE
        if isinstance(key, Refusal):
            raise self._refusal(key, authorization)
        return key

    async def load(self) -> bool:
        """Load the records, and record which keys were used. Returns False if Redis can't be reached."""
        assert self._store is not None, "loading needs a store"
        sent_at = lease_clock()
        try:
            snapshot = await self._store.api_keys.snapshot()
        except SessionStoreError as exc:
            if self._trouble is None:
                log.warning("The API keys can't be loaded, so %s: %s", self._known(), with_cause(exc))
            self._trouble = str(exc)
            self._wake()
            return False
        self.ring.load(snapshot, sent_at)
        if self._had_keys and not snapshot.keys:
            # Records outlive their keys, so Redis has lost them.
            log.error("Redis has lost all API keys, as after FLUSHALL. Make new ones: sessionstore keys create.")
        self._had_keys = bool(snapshot.keys)
        for key_id in sorted(set(snapshot.corrupt) - self._corrupt):
            log.error(
                "The record of the API key %s in Redis is corrupt, so it opens nothing. Remove it: sessionstore keys "
                "revoke %s",
                key_id,
                key_id,
            )
        self._corrupt = frozenset(snapshot.corrupt)
        self._on_load(snapshot)
        if self._trouble is not None:
            log.warning("The API keys are loaded again.")
        self._trouble = None
        self._loaded_from = sent_at
        self._wake()
        await self._record_uses()
        return True

    def age_s(self) -> float:
        """Seconds since the records were loaded; infinite before the first load."""
        return self.ring.age_s(lease_clock())

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncIterator[bool]:
        """Reload the records until the block ends; yields whether the first load succeeded."""
        loaded = await self.load()
        keeper = asyncio.create_task(self._keep())
        try:
            yield loaded
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            try:
                await self.load()
            except Exception:
                # The next load may succeed. Without one the ring admits no key after the grace, which is safe.
                log.exception("Loading the API keys failed")

    def _refusal(self, key: Refusal, authorization: str | None) -> Exception:
        """Count a refusal, and make its error, which tells nothing about keys."""
        if key is Refusal.MISSING and authorization is not None:
            # While the records are too old, every wrong key gets the same answer.
            known = self._store is None or self.ring.is_current(lease_clock())
            key = Refusal.MALFORMED if known else Refusal.UNAVAILABLE
        if key is Refusal.UNAVAILABLE and self._store is None:
            key = Refusal.UNKNOWN
        self._on_refusal(key)
        if key is Refusal.UNAVAILABLE:
            # One cause, one sentence: /readyz says the same.
            return StoreUnavailableError(
                self._trouble or "The API keys can't be loaded to check this key; try again later."
            )
        # One sentence for every header, so that the answer tells nothing about keys.
        sentence = _NO_HEADER if authorization is None else _NO_VALID_KEY
        return RequestError("unauthorized", sentence, {"www-authenticate": 'Bearer realm="sessions"'})

    def _known(self) -> str:
        """Say which keys work while they can't be loaded."""
        if self.ring.age_s(lease_clock()) < self._grace_s:
            return f"those loaded before stay valid for {show_seconds(self._grace_s)}"
        return "only the bootstrap key is known" if self._bootstrapped else "none is known"

    def _wake(self) -> None:
        self._tried.set()
        self._tried = asyncio.Event()

    async def _next_load(self) -> bool:
        """Wait for records that were requested after this call; returns False if they don't come."""
        called_at = lease_clock()
        self._waiting += 1
        try:
            async with asyncio.timeout(_SECOND_LOOK_S):
                while self._loaded_from < called_at and self._trouble is None:
                    await self._tried.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        return self._loaded_from >= called_at

    async def _record_uses(self) -> None:
        assert self._store is not None, "recording needs a store"
        uses = self.ring.due_uses()
        if not uses or lease_clock() < self._retry_uses_at:
            return
        try:
            await self._store.api_keys.mark_used(uses)
        except SessionStoreError as exc:
            self._retry_uses_at = lease_clock() + _RETRY_USES_S
            log.warning("The use of API keys can't be recorded: %s", exc)
