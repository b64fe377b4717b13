"""The operations on catalogs, as generators like those of operations.py."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from ..catalog.document import CatalogDocument
from ..catalog.model import Catalog, CatalogDiff, ScenarioPage, diff_catalogs, page_scenarios
from ..errors import NotDurableError, OutcomeUnknownError, StoreUnavailableError
from ..session import Effect
from . import calls, operations
from .calls import Terms, WriteContext
from .keyspace import EnvironmentKeyspace, ProjectKeyspace
from .operations import Commit, Operation
from .replies import CatalogApplied, unknown_environment

#: Attempts of an apply to name all sessions, while others create new ones.
_ATTEMPTS = 10

#: Returns the context of an environment of the project, by slug.
Contexts = Callable[[str], WriteContext]


class EnvironmentReport(Struct, frozen=True):
    """What an apply did to one environment.

    Attributes
    ----------
    environment : str
    change : str
        ``created`` (it had no catalog), ``changed``, ``unchanged``, or ``removed`` (the document does not name it).
    sessions : int
        Sessions that lost a scenario or an override which the catalog no longer offers.
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
    """What an apply did: one report for each environment of the document, then for each removed one.

    Without `prune`, `left_alone` names the registered environments that the document does not name.
    """

    project: str
    environments: tuple[EnvironmentReport, ...]
    left_alone: tuple[str, ...] = ()

    @property
    def sessions(self) -> int:
        """The sum of `sessions` over all environments."""
        return sum(report.sessions for report in self.environments)

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return any(report.change != "unchanged" for report in self.environments)


def apply(
    keyspace: ProjectKeyspace, contexts: Contexts, document: CatalogDocument, *, prune: bool, terms: Terms
) -> Operation[CatalogReport]:
    """Apply a document, one environment after another."""
    targets, others = yield from _targets(keyspace, document, prune=prune)
    reports: list[EnvironmentReport] = []
    for name, catalog in targets.items():
        try:
            report = yield from _apply_environment(contexts(name), catalog, terms)
        except (StoreUnavailableError, NotDurableError) as exc:
            if not reports:
                raise
            done = ", ".join(report.environment for report in reports)
            # A StoreUnavailableError itself would mean that nothing was changed.
            kind = OutcomeUnknownError if type(exc) is StoreUnavailableError else type(exc)
            raise kind(
                f"{exc} This was environment {name!r}; applied before it: {done}. Apply the document again: it is safe."
            ) from exc
        reports.append(report)
    return CatalogReport(document.project, tuple(reports), others)


def read(keyspace: EnvironmentKeyspace) -> Operation[Catalog | None]:
    """Read one environment's catalog, or None."""
    reply = yield calls.read_catalog(keyspace)
    if reply.environments and keyspace.environment not in reply.environments:
        raise unknown_environment(keyspace, reply.environments)
    catalog: Catalog | None = reply.catalog
    return catalog


def list_scenarios(
    keyspace: EnvironmentKeyspace, limit: int, search: str | None, before: str | None
) -> Operation[ScenarioPage]:
    """Read one page of an environment's scenarios."""
    # Reject bad input before anything is sent.
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
        keyspace_of = contexts(name).keyspace
        reply = yield calls.read_catalog(keyspace_of)
        if catalog is None:
            change = "removed"
        elif reply.catalog is None:
            change = "created"
        else:
            change = "unchanged" if reply.catalog == catalog else "changed"
        difference = diff_catalogs(reply.catalog, catalog)
        sessions = 0
        # Before its first catalog an environment accepts any id, so every session must be checked.
        if change in ("created", "removed") or difference.mocks_removed or difference.scenarios_removed:
            sessions = yield from _count_losing(keyspace_of, catalog or Catalog())
        reports.append(EnvironmentReport(name, change, sessions, difference))
    return CatalogReport(document.project, tuple(reports), others)


def _count_losing(keyspace: EnvironmentKeyspace, catalog: Catalog) -> Operation[int]:
    """Count the live sessions in which an apply would deactivate something (scripts/catalog_apply.lua)."""
    mocks = {mock.id for mock in catalog.mocks}
    scenarios = {None, *catalog.scenarios_by_id}
    seen: set[str] = set()
    losing = 0
    cursor = ""
    while cursor != "0":
        page = yield calls.scan(keyspace, cursor or "0")
        cursor = page.cursor
        # A scan may name a member twice.
        found = [key for key in dict.fromkeys(page.members) if key not in seen]
        seen.update(found)
        for start in range(0, len(found), calls.READ_BATCH):
            reply = yield calls.read(keyspace, found[start : start + calls.READ_BATCH])
            losing += sum(
                session.scenario not in scenarios or not mocks.issuperset(session.overrides)
                for session in reply.sessions
            )
    return losing


def _targets(
    keyspace: ProjectKeyspace, document: CatalogDocument, *, prune: bool
) -> Operation[tuple[dict[str, Catalog | None], tuple[str, ...]]]:
    """The catalog to apply to each environment, None to remove it; and the environments to leave alone."""
    registered = yield from operations.environments(keyspace)
    others = tuple(name for name in registered if name not in document.environments)
    targets: dict[str, Catalog | None] = {**document.environments}
    if prune:
        targets |= dict.fromkeys(others)
    return targets, () if prune else others


def _apply_environment(context: WriteContext, catalog: Catalog | None, terms: Terms) -> Operation[EnvironmentReport]:
    started = context.clock()
    done = yield from _apply_to_all_sessions(context, catalog, terms)
    effect = yield from operations.take_effect(context, replace(done, sent_at=started), None, terms)
    reply = done.reply
    if not reply.changed:
        change = "unchanged"
    elif catalog is None:
        change = "removed"
    else:
        change = "changed" if reply.existed else "created"
    difference = diff_catalogs(reply.previous, catalog) if reply.changed else CatalogDiff()
    return EnvironmentReport(context.keyspace.environment, change, reply.sessions, difference, effect)


def _apply_to_all_sessions(
    context: WriteContext, catalog: Catalog | None, terms: Terms
) -> Operation[Commit[CatalogApplied]]:
    """Apply a catalog. The script answers which sessions it needs; name them and call it again."""
    op_id = operations.new_id()
    session_keys: dict[str, None] = {}
    for _ in range(_ATTEMPTS):
        call = calls.apply_catalog(context, op_id, catalog, tuple(session_keys), terms=terms)
        done = yield from operations.commit(context, call, terms)
        if done.reply.status == "ok":
            return done
        session_keys.update(dict.fromkeys(done.reply.missing))
        cursor = "0" if done.reply.more else None
        while cursor is not None:
            page = yield calls.scan(context.keyspace, cursor)
            session_keys.update(dict.fromkeys(page.members))
            cursor = page.cursor if page.cursor != "0" else None
    raise StoreUnavailableError(
        f"New sessions of {context.keyspace} kept coming, so its catalog could not be applied to all of them; "
        "nothing was changed, try again."
    )
