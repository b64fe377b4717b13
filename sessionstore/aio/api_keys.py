"""API keys, for asyncio."""

from __future__ import annotations

from collections.abc import Mapping

from ..api_keys import operations
from ..api_keys.model import ApiKey, KeySnapshot, NewApiKey
from ..protocol.keyspace import StoreKeyspace
from .runner import Runner


class AsyncApiKeys:
    """The API keys of a store. Made by `AsyncSessionStore.api_keys`.

    Every method may raise `StoreUnavailableError`, and `OutcomeUnknownError` where a write was sent and no answer came.
    """

    __slots__ = ("_keyspace", "_runner")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._keyspace = StoreKeyspace(runner.config.prefix)

    async def create(self, name: str, *, project: str | None = None, expires_at: int | None = None) -> NewApiKey:
        """Make a key. The secret that this returns is nowhere else: it can't be shown again.

        Parameters
        ----------
        name : str
            For people, at most 200 characters.
        project : str, optional
            The one project that the key may use; without it, every project.
        expires_at : int, optional
            Ms since 1970, in Redis time; without it, never.

        Raises
        ------
        TooManyApiKeysError
            25 keys are active; revoked and expired ones do not count.
        InvalidFieldError, InvalidSlugError
        """
        return await self._runner.run(operations.create(self._keyspace, name, project=project, expires_at=expires_at))

    async def list(self) -> tuple[ApiKey, ...]:
        """Read what is known of every key, oldest first; those that have ended lately are among them."""
        return await self._runner.run(operations.list_keys(self._keyspace))

    async def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key for good; every gateway refuses it within a second. Revoking it again changes nothing.

        Raises
        ------
        ApiKeyNotFoundError
        """
        return await self._runner.run(operations.revoke(self._keyspace, key_id))

    async def snapshot(self) -> KeySnapshot:
        """Read every record by the hash of its key, for a `KeyRing`."""
        return await self._runner.run(operations.snapshot(self._keyspace))

    async def mark_used(self, used: Mapping[str, int]) -> int:
        """Record when keys were last used, each at most once a minute; returns how many records that changed.

        Parameters
        ----------
        used : mapping
            Key id → ms since 1970, in Redis time: what `KeyRing.due_uses` returns.
        """
        return await self._runner.run(operations.mark_used(self._keyspace, used))
