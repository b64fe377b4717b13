"""Who may call: API keys.

The gateway holds the SHA-256 of keys, never a key, and compares in constant time. It checks a key against its own copy
of all records (`sessionstore.apikeys.KeyRing`), which a task loads again several times a second: so a wrong key costs
Redis nothing, and a revoked one is refused within a second. Where that copy can't be kept, nobody is admitted by it. No
key is ever logged: logs name it by its public id, the first digits of its hash.

Whatever is refused has first waited for the next load: a key that was made a moment ago works at once, one that was
revoked can't be told from one that never was by the time the answer takes, and guessing is slow. The wait is a sleeping
coroutine, and holds nothing that a right key needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable

from msgspec import Struct

from sessionstore import AsyncSessionStore
from sessionstore.api_keys.model import ApiKey
from sessionstore.api_keys.ring import REFRESH_INTERVAL_S, KeyRing, Refusal
from sessionstore.clock import lease_clock
from sessionstore.errors import SessionStoreError, StoreUnavailableError

from .errors import UnauthorizedError
from .logs import with_cause

__all__ = ["Authenticator", "Principal"]

log = logging.getLogger("gateway")

#: The scheme in any case, and a key by its form (`sessionstore.apikeys`): what has another is not worth a hash.
_AUTHORIZATION = re.compile(rb"(?i:bearer|token) +(fmk_[A-Za-z0-9_-]{43})\Z")

#: Seconds that a request which is to be refused waits for the records to be loaded again.
_SECOND_LOOK_S = 2 * REFRESH_INTERVAL_S
#: Seconds until the use of keys is noted again after that has failed: Redis may refuse writes for long.
_NOTE_AGAIN_S = 10.0


class Principal(Struct, frozen=True, gc=False):
    """Whose key it is.

    Attributes
    ----------
    key_id : str
        Names the key in logs.
    project : str or None
        The one project that the key opens; None: every project.
    """

    key_id: str
    project: str | None = None


class Authenticator:
    """Knows the keys.

    Parameters
    ----------
    bootstrap : str, optional
        A key for every project that the gateway was started with. It works whether or not Redis can be reached.
    store : AsyncSessionStore, optional
        Holds the other keys, which are known while `keeping` runs. Without it, there are none.
    on_refusal : callable, optional
        Told why a request was refused, for metrics: the answer does not tell.
    """

    def __init__(
        self,
        bootstrap: str | None = None,
        store: AsyncSessionStore | None = None,
        *,
        on_refusal: Callable[[Refusal], None] | None = None,
    ) -> None:
        self.ring = KeyRing([] if bootstrap is None else [bootstrap])
        self._bootstrapped = bootstrap is not None
        self._had_keys = False
        self._store = store
        self._on_refusal = on_refusal
        #: set, and replaced, with each load
        self._loaded = asyncio.Event()
        #: when the last records were asked for; by `lease_clock`, as all times here
        self._loaded_from = float("-inf")
        self._in_touch = True
        self._note_again_at = float("-inf")

    async def authenticate(self, authorization: bytes | None) -> Principal:
        """Find out whose key an ``Authorization`` header holds.

        Raises
        ------
        UnauthorizedError
            The same for no key, a malformed, an unknown, a revoked and an expired one.
        StoreUnavailableError
            The records are too old to tell whether the key still works.
        """
        match = _AUTHORIZATION.match(authorization or b"")
        secret = None if match is None else match[1].decode()
        key = self.ring.authenticate(secret, lease_clock())
        if isinstance(key, Refusal):
            key = await self._look_again(authorization, secret)
        return Principal(key.id, key.project)

    async def load(self) -> bool:
        """Load the records once; False where Redis can't be reached. Then notes which keys were used."""
        assert self._store is not None, "there is a store to load from"
        sent_at = lease_clock()
        try:
            snapshot = await self._store.api_keys.snapshot()
        except SessionStoreError as exc:
            if self._in_touch:
                known = "only the bootstrap key is known" if self._bootstrapped else "none is known"
                log.warning("The API keys can't be loaded, so %s: %s", known, with_cause(exc))
            self._in_touch = False
            return False
        self.ring.load(snapshot, sent_at)
        if self._had_keys and not snapshot.keys:
            # Records are kept when keys end: that none is left means that Redis has lost them.
            log.error("Redis has lost all API keys, as after FLUSHALL; make new ones: sessionstore keys create.")
        self._had_keys = bool(snapshot.keys)
        if not self._in_touch:
            log.info("The API keys are loaded again.")
        self._in_touch = True
        self._loaded_from = sent_at
        self._loaded.set()
        self._loaded = asyncio.Event()
        await self._note_uses()
        return True

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncIterator[bool]:
        """Load the records, and again and again until the block ends; yields whether the first load succeeded."""
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
                # Whatever it was, the next load may succeed; without one the ring admits nobody, which is safe.
                log.exception("Loading the API keys failed")

    async def _look_again(self, authorization: bytes | None, secret: str | None) -> ApiKey:
        """Wait for the next load, and decide; a request without any key is refused at once."""
        if authorization is not None and self._store is not None:
            await self._next_load()
        now = lease_clock()
        key = self.ring.authenticate(secret, now)
        if isinstance(key, ApiKey):
            return key
        if key is Refusal.MISSING and authorization is not None:
            # Where it can't be told whether another key works, the answer is the same.
            key = Refusal.MALFORMED if self._store is None or self.ring.is_current(now) else Refusal.UNAVAILABLE
        if key is Refusal.UNAVAILABLE and self._store is None:
            key = Refusal.UNKNOWN
        if self._on_refusal is not None:
            self._on_refusal(key)
        if key is Refusal.UNAVAILABLE:
            raise StoreUnavailableError(
                "Redis can't be reached, so whether this key still works is not known; try again later."
            )
        raise UnauthorizedError

    async def _next_load(self) -> None:
        """Wait until records are there that were asked for after this was called."""
        called_at = lease_clock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SECOND_LOOK_S):
                while self._loaded_from < called_at:
                    await self._loaded.wait()

    async def _note_uses(self) -> None:
        assert self._store is not None, "there is a store to write to"
        uses = self.ring.due_uses()
        if not uses or lease_clock() < self._note_again_at:
            return
        try:
            await self._store.api_keys.mark_used(uses)
        except SessionStoreError as exc:
            self._note_again_at = lease_clock() + _NOTE_AGAIN_S
            log.warning("The use of API keys can't be noted: %s", exc)
