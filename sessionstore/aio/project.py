"""A project's catalogs, for asyncio."""

from __future__ import annotations

from typing import Any

from ..catalog.document import CatalogDocument, check_project
from ..protocol import catalog_operations, operations
from ..protocol.calls import Terms, WriteContext
from ..protocol.catalog_operations import CatalogReport
from ..protocol.keyspace import ProjectKeyspace
from ..session import LiveCounts, LiveViews
from .runner import Runner


class AsyncProject:
    """The environments of one project, and their catalogs. Made by `AsyncSessionStore.project`.

    Every method may raise `StoreUnavailableError`. If a write gets no answer, it raises `OutcomeUnknownError`.
    """

    def __init__(self, runner: Runner, project: str) -> None:
        self._runner = runner
        self._keyspace = ProjectKeyspace(runner.config.prefix, project)
        self._name = project

    @property
    def name(self) -> str:
        """The project's slug."""
        return self._name

    async def environments(self) -> tuple[str, ...]:
        """Read the registered environments, in alphabetical order."""
        return await self._runner.run(operations.environments(self._keyspace))

    async def live_counts(self) -> dict[str, LiveCounts]:
        """Count the live sessions and views of each registered environment. It is cheap enough for a metric.

        A session counts until the longest TTL that any writer used has passed since it was last seen.
        """
        return await self._runner.run(operations.live_counts(self._keyspace, self._context))

    async def live_views(self, environment: str) -> LiveViews:
        """Read the live views of one environment, and how many the project's other environments have.

        Raises
        ------
        EnvironmentNotFoundError
            The project has registered environments, and this is none of them.
        """
        keyspace = self._context(environment).keyspace
        return await self._runner.run(operations.live_views(keyspace, self._keyspace, self._context))

    async def catalog(self) -> CatalogDocument:
        """Read the catalog of every registered environment."""
        return await self._runner.run(catalog_operations.read_project(self._keyspace, self._name, self._context))

    async def apply_catalog(
        self,
        document: CatalogDocument | dict[str, Any],
        *,
        prune: bool = False,
        wait: bool = True,
        replicas: int | None = None,
    ) -> CatalogReport:
        """Apply the catalogs of a document to the project's environments, and register them.

        Each environment is changed whole or not at all. One that has this catalog already is not changed. In the same
        step, every session loses the scenarios and overrides that the catalog no longer offers.

        Parameters
        ----------
        document : CatalogDocument or dict
            The result of `parse_catalog_document`, or plain data of the same structure.
        prune : bool
            Remove the catalog and the registration of environments that the document does not name. Otherwise the
            report names them.
        wait : bool
            Return when every live view serves the new state; False returns when Redis has committed it.
        replicas : int, optional
            Replicas of Redis that must have it too, 0 to 10, in place of the store's `replicas`.

        Raises
        ------
        InvalidCatalogError
            The document has an error, or belongs to another project; nothing was changed.
        NotDurableError
            A change was committed, and fewer replicas have it. Later environments were not changed.
        NotEffectiveError
            A change was committed, but perhaps not every view serves it.
        OutcomeUnknownError
            Redis failed midway. The message names the environments that were changed before.
        """
        config = self._runner.config
        return await self._runner.run(
            catalog_operations.apply(
                self._keyspace,
                self._context,
                check_project(document, self._name),
                prune=prune,
                terms=Terms(wait, 0, config.actor, config.replicas if replicas is None else replicas),
            )
        )

    async def diff_catalog(self, document: CatalogDocument | dict[str, Any], *, prune: bool = False) -> CatalogReport:
        """Report what `apply_catalog` would change, without changing it. It reads all live sessions.

        Raises
        ------
        InvalidCatalogError
        """
        return await self._runner.run(
            catalog_operations.diff(self._keyspace, self._context, check_project(document, self._name), prune=prune)
        )

    def _context(self, environment: str) -> WriteContext:
        return self._runner.config.context(self._name, environment)
