"""Who may call: API keys.

The gateway holds the SHA-256 of keys, never a key, and compares in constant time. It checks a key against its own copy
of all records (`sessionstore.apikeys.KeyRing`), which a task loads again several times a second: so a wrong key costs
Redis nothing, and a revoked one is refused within a second. Where that copy can't be kept, nobody is admitted by it. No
key is ever logged: logs name it by its public id, the first digits of its hash.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable

from msgspec import Struct

from sessionstore import AsyncSessionStore
from sessionstore.apikeys import REFRESH_INTERVAL_S, ApiKey, KeyRing, Refusal
from sessionstore.clock import lease_clock
from sessionstore.errors import SessionStoreError, StoreUnavailableError

from .errors import UnauthorizedError

__all__ = ["Authenticator", "Principal"]

log = logging.getLogger("gateway")

#: The scheme in any case, and a key by its form (`sessionstore.apikeys`): what has another is not worth a hash.
_AUTHORIZATION = re.compile(rb"(?i:bearer|token) +(fmk_[A-Za-z0-9_-]{43})\Z")

#: Seconds that a request with an unknown key waits for the records to be loaded again: the key may have been made a
#: moment ago.
_SECOND_LOOK_S = 2 * REFRESH_INTERVAL_S


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
        Holds the other keys; `keep` loads them. Without it, there are none.
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
        self._store = store
        self._on_refusal = on_refusal
        self._loaded = asyncio.Event()

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
        admitted = self.ring.authenticate(secret, lease_clock())
        if admitted is Refusal.UNKNOWN and self._store is not None:
            await self._next_load()
            admitted = self.ring.authenticate(secret, lease_clock())
        if isinstance(admitted, ApiKey):
            return Principal(admitted.id, admitted.project)
        if self._on_refusal is not None:
            reason = admitted
            if authorization is not None and admitted is Refusal.MISSING:
                reason = Refusal.MALFORMED
            self._on_refusal(reason)
        if admitted is Refusal.UNAVAILABLE and secret is not None and self._store is not None:
            raise StoreUnavailableError(
                "Redis can't be reached, so whether this key still works is not known; try again later."
            )
        raise UnauthorizedError

    async def load(self) -> bool:
        """Load the records once; False where Redis can't be reached. Then notes which keys were used."""
        assert self._store is not None, "there is a store to load from"
        sent_at = lease_clock()
        try:
            self.ring.load(await self._store.keys.snapshot(), sent_at)
        except SessionStoreError as exc:
            if self.ring.is_current(lease_clock()):
                log.warning("The API keys can't be loaded: %s", exc)
            return False
        self._loaded.set()
        self._loaded = asyncio.Event()
        uses = self.ring.due_uses()
        if uses:
            try:
                await self._store.keys.mark_used(uses)
            except SessionStoreError as exc:
                log.warning("The use of API keys can't be noted: %s", exc)
        return True

    async def keep(self) -> None:
        """Load the records again and again, until cancelled."""
        while True:
            await self.load()
            await asyncio.sleep(REFRESH_INTERVAL_S)

    async def _next_load(self) -> None:
        """Wait until records are there that were asked for after this was called."""
        called_at = lease_clock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SECOND_LOOK_S):
                while (now := lease_clock()) - self.ring.age_s(now) < called_at:
                    await self._loaded.wait()
