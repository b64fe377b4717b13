"""API keys, for asyncio."""

from __future__ import annotations

from collections.abc import Mapping

from ..api_keys import operations
from ..api_keys.model import DEFAULT_ACTIVE_KEYS, ApiKey, KeySnapshot, NewApiKey, RequestCount
from ..protocol.keyspace import StoreKeyspace
from .runner import Runner


class AsyncApiKeys:
    """The API keys of a store. Made by `AsyncSessionStore.api_keys`.

    Every method may raise `StoreUnavailableError`. If a write gets no answer, it raises `OutcomeUnknownError`.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._keyspace = StoreKeyspace(runner.config.prefix)

    async def create(
        self,
        name: str,
        *,
        project: str | None = None,
        expires_at: int | None = None,
        max_active: int = DEFAULT_ACTIVE_KEYS,
    ) -> NewApiKey:
        """Make a key. Only this call returns the secret: it is stored nowhere.

        Parameters
        ----------
        name : str
            For people, at most 200 characters.
        project : str, optional
            The one project that the key may use; without it, every project.
        expires_at : int, optional
            Ms since 1970, in Redis time; without it, never.
        max_active : int
            Keys that may be active afterwards: 1 to 1,000.

        Raises
        ------
        TooManyApiKeysError
            `max_active` keys are active. Revoked and expired keys do not count.
        InvalidFieldError, InvalidSlugError
        """
        return await self._runner.run(
            operations.create(self._keyspace, name, project=project, expires_at=expires_at, max_active=max_active)
        )

    async def list(self) -> tuple[ApiKey, ...]:
        """Read every key's record, oldest first, including the latest revoked and expired ones."""
        return await self._runner.run(operations.list_keys(self._keyspace))

    async def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key for good. Revoking it again changes nothing.

        Every gateway refuses it within a second; one that can't load the keys from Redis, after its grace.

        Raises
        ------
        ApiKeyNotFoundError
        """
        return await self._runner.run(operations.revoke(self._keyspace, key_id))

    async def snapshot(self) -> KeySnapshot:
        """Read every record by the hash of its key, for a `KeyRing`."""
        return await self._runner.run(operations.snapshot(self._keyspace))

    async def mark_used(self, used: Mapping[str, int]) -> int:
        """Record when keys were last used, each at most once a minute; returns the number of changed records.

        Parameters
        ----------
        used : mapping
            Key id → ms since 1970, in Redis time, as `KeyRing.due_uses` returns it.
        """
        return await self._runner.run(operations.mark_used(self._keyspace, used))

    async def count_request(self, key_id: str, window_s: int) -> RequestCount:
        """Count a request of a key, over all stores with one prefix, for a limit in fixed windows.

        Parameters
        ----------
        key_id : str
            Of any key, also one that is not stored.
        window_s : int
            Seconds of a window, 1 to 999,999. The first request begins a window.

        Raises
        ------
        InvalidFieldError
        """
        return await self._runner.run(operations.count_request(self._keyspace, key_id, window_s))
