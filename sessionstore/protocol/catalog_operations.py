"""What a store does with catalogs, as generators like those in operations.py."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ..catalog.document import CatalogDocument
from ..catalog.model import Catalog, CatalogDiff, ScenarioPage, diff_catalogs, page_scenarios
from ..errors import StoreUnavailableError
from ..session import Effect
from . import calls, operations
from .calls import WriteContext
from .keyspace import EnvironmentKeyspace, ProjectKeyspace
from .operations import Clock, Operation
from .replies import CatalogApplied, unknown_environment

#: How often an apply looks for sessions that were created while it looked for the others.
_ATTEMPTS = 10

#: Members of the index that one page of a scan has, about: names only, so that it is more than a snapshot reads.
_SCAN_BATCH = 1000

#: What a project is asked for: the context of one of its environments, by slug.
Contexts = Callable[[str], WriteContext]


class EnvironmentReport(Struct, frozen=True):
    """What an apply did to one environment.

    Attributes
    ----------
    environment : str
    change : str
        ``created``: it had no catalog. ``changed``, ``unchanged``. ``removed``: the document does not have it.
    sessions : int
        Sessions in which something was deactivated, since it is no longer offered.
    diff : CatalogDiff
    effect : Effect or None
        How the change took effect.
    """

    environment: str
    change: str
    sessions: int
    diff: CatalogDiff
    effect: Effect | None = None


class CatalogReport(Struct, frozen=True):
    """What an apply did: one report for each environment of the document, then for each that it removed.

    `left_alone` names the registered environments that the document does not have, where it was not told to prune.
    """

    project: str
    environments: tuple[EnvironmentReport, ...]
    left_alone: tuple[str, ...] = ()

    @property
    def sessions(self) -> int:
        """Sessions in which something was deactivated, in all environments."""
        return sum(report.sessions for report in self.environments)

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return any(report.change != "unchanged" for report in self.environments)


def apply(
    keyspace: ProjectKeyspace, contexts: Contexts, clock: Clock, document: CatalogDocument, *, prune: bool, wait: bool
) -> Operation[CatalogReport]:
    """Apply a document, one environment after another."""
    targets, others = yield from _targets(keyspace, document, prune=prune)
    reports: list[EnvironmentReport] = []
    for name, catalog in targets.items():
        try:
            report = yield from _apply_environment(contexts(name), clock, catalog, wait)
        except StoreUnavailableError as exc:
            if not reports:
                raise
            done = ", ".join(report.environment for report in reports)
            raise type(exc)(
                f"{exc} This was environment {name!r}; applied before it: {done}. Apply the document again: it is safe."
            ) from exc
        reports.append(report)
    return CatalogReport(document.project, tuple(reports), others)


def read(keyspace: EnvironmentKeyspace) -> Operation[Catalog | None]:
    """Read one environment's catalog; None where it has none."""
    reply = yield calls.read_catalog(keyspace)
    if not reply.known:
        raise unknown_environment(keyspace)
    catalog: Catalog | None = reply.catalog
    return catalog


def list_scenarios(
    keyspace: EnvironmentKeyspace, limit: int, search: str | None, before: str | None
) -> Operation[ScenarioPage]:
    """Read one page of an environment's scenarios."""
    # Bad input is refused before anything is sent.
    page_scenarios(None, limit, search, before)
    catalog = yield from read(keyspace)
    return page_scenarios(catalog, limit, search, before)


def read_project(keyspace: ProjectKeyspace, project: str, contexts: Contexts) -> Operation[CatalogDocument]:
    """Read the catalogs of a project's registered environments."""
    catalogs = {}
    for name in (yield from operations.environments(keyspace)):
        reply = yield calls.read_catalog(contexts(name).keyspace)
        catalogs[name] = reply.catalog or Catalog()
    return CatalogDocument(project, catalogs)


def diff(
    keyspace: ProjectKeyspace, contexts: Contexts, document: CatalogDocument, *, prune: bool
) -> Operation[CatalogReport]:
    """What an apply of the document would change."""
    targets, others = yield from _targets(keyspace, document, prune=prune)
    reports = []
    for name, catalog in targets.items():
        reply = yield calls.read_catalog(contexts(name).keyspace)
        if catalog is None:
            change = "removed"
        elif reply.catalog is None:
            change = "created"
        else:
            change = "unchanged" if reply.catalog == catalog else "changed"
        reports.append(EnvironmentReport(name, change, 0, diff_catalogs(reply.catalog, catalog)))
    return CatalogReport(document.project, tuple(reports), others)


def _targets(
    keyspace: ProjectKeyspace, document: CatalogDocument, *, prune: bool
) -> Operation[tuple[dict[str, Catalog | None], tuple[str, ...]]]:
    """What each environment is to offer, None for those that go, and those that are left alone."""
    registered = yield from operations.environments(keyspace)
    others = tuple(name for name in registered if name not in document.environments)
    targets: dict[str, Catalog | None] = {**document.environments}
    if prune:
        targets |= dict.fromkeys(others)
    return targets, () if prune else others


def _apply_environment(
    context: WriteContext, clock: Clock, catalog: Catalog | None, wait: bool
) -> Operation[EnvironmentReport]:
    started = clock()
    reply = yield from _apply_to_all_sessions(context, catalog, wait)
    effect = yield from operations.take_effect(context, clock, started, reply, None, wait)
    if not reply.changed:
        change = "unchanged"
    elif catalog is None:
        change = "removed"
    else:
        change = "changed" if reply.existed else "created"
    difference = diff_catalogs(reply.previous, catalog) if reply.changed else CatalogDiff()
    return EnvironmentReport(context.keyspace.environment, change, reply.sessions, difference, effect)


def _apply_to_all_sessions(context: WriteContext, catalog: Catalog | None, wait: bool) -> Operation[CatalogApplied]:
    """Apply a catalog, with as many sessions named as turn out to be needed."""
    op_id = operations.new_id()
    session_keys: dict[str, None] = {}
    for _ in range(_ATTEMPTS):
        reply: CatalogApplied = yield calls.apply_catalog(context, op_id, catalog, tuple(session_keys), wait=wait)
        if reply.status == "ok":
            return reply
        session_keys.update(dict.fromkeys(reply.missing))
        cursor = "0" if reply.more else None
        while cursor is not None:
            page = yield calls.scan(context.keyspace, cursor, _SCAN_BATCH)
            session_keys.update(dict.fromkeys(page.members))
            cursor = page.cursor if page.cursor != "0" else None
    raise StoreUnavailableError(
        f"New sessions of {context.keyspace} kept coming, so its catalog could not be applied to all of them; "
        "nothing was changed, try again."
    )
