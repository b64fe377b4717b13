# Generated from aio/project.py by .ci/unasync.py: change that file instead.
"""A project's catalogs, for threads."""

from __future__ import annotations

import time
from typing import Any

from ..catalog.document import CatalogDocument, check_project
from ..protocol import catalog_operations, operations
from ..protocol.calls import WriteContext
from ..protocol.catalog_operations import CatalogReport
from ..protocol.keyspace import ProjectKeyspace
from .runner import Runner


class Project:
    """The environments of one project, and what they offer. Made by `SessionStore.project`.

    Every method may raise `StoreUnavailableError`, and `OutcomeUnknownError` where a write was sent and no answer came.
    """

    __slots__ = ("_keyspace", "_name", "_runner")

    def __init__(self, runner: Runner, project: str) -> None:
        self._runner = runner
        self._keyspace = ProjectKeyspace(runner.config.prefix, project)
        self._name = project

    @property
    def name(self) -> str:
        """The project's slug."""
        return self._name

    def environments(self) -> tuple[str, ...]:
        """Read the registered environments, in alphabetical order."""
        return self._runner.run(operations.environments(self._keyspace))

    def live_sessions(self) -> dict[str, int]:
        """Count the live sessions of each registered environment: cheap, for a figure to watch.

        A session counts until the longest TTL that any writer used has passed since it was last seen.
        """
        return self._runner.run(operations.live_sessions(self._keyspace, self._context))

    def catalog(self) -> CatalogDocument:
        """Read what every registered environment offers."""
        return self._runner.run(catalog_operations.read_project(self._keyspace, self._name, self._context))

    def apply_catalog(
        self, document: CatalogDocument | dict[str, Any], *, prune: bool = False, wait: bool = True
    ) -> CatalogReport:
        """Make the project's environments offer what the document says, and register them.

        Each environment is changed at once or not at all, and one that offers this already is left as it is. What is no
        longer offered is deactivated in every session that uses it, at the same time.

        Parameters
        ----------
        document : CatalogDocument or dict
            What `parse_catalog_document` returns, or plain data of the same structure.
        prune : bool
            Take away the catalog and the registration of environments that the document does not have; else they are
            left alone, and the report names them.
        wait : bool
            Return when every live view serves the new state; False returns when Redis has committed it.

        Raises
        ------
        InvalidCatalogError
            The document has an error, or is another project's; nothing was changed.
        NotEffectiveError
            Something was committed, but whether every view serves it is not known.
        """
        return self._runner.run(
            catalog_operations.apply(
                self._keyspace,
                self._context,
                time.monotonic,
                check_project(document, self._name),
                prune=prune,
                wait=wait,
            )
        )

    def diff_catalog(self, document: CatalogDocument | dict[str, Any], *, prune: bool = False) -> CatalogReport:
        """Tell what `apply_catalog` would change, and change nothing; sessions are not counted.

        Raises
        ------
        InvalidCatalogError
        """
        return self._runner.run(
            catalog_operations.diff(self._keyspace, self._context, check_project(document, self._name), prune=prune)
        )

    def _context(self, environment: str) -> WriteContext:
        return self._runner.config.context(self._name, environment)
