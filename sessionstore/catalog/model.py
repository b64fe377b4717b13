"""The catalog of an environment: its published mocks and its scenarios.

A *published* mock can be activated by itself. A *scenario* is a bundle of mocks. A *scenario-local* mock belongs to one
scenario and can't be activated by itself. Drafts do not appear here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ..errors import InvalidQueryError
from ..paging import decode_cursor, encode_cursor, validate_limit
from ..session import Session

#: Code points of a search text.
MAX_SEARCH_LENGTH = 200


class Mock(Struct, rename="camel", frozen=True):
    """A mock: its id, ``ovr_…``, and its name."""

    id: str
    name: str


class Scenario(Struct, rename="camel", frozen=True):
    """A scenario: `mocks` are the ids of its mocks, published or local, in the order they apply."""

    id: str
    name: str
    url_id: str
    mocks: tuple[str, ...] = ()
    local_mocks: tuple[Mock, ...] = ()


class Catalog(Struct, rename="camel", frozen=True, dict=True):
    """The published mocks and the scenarios of one environment."""

    mocks: tuple[Mock, ...] = ()
    scenarios: tuple[Scenario, ...] = ()

    @cached_property
    def mocks_by_id(self) -> Mapping[str, Mock]:
        """Every mock, scenario-local ones too."""
        local = (mock for scenario in self.scenarios for mock in scenario.local_mocks)
        return {mock.id: mock for mock in (*self.mocks, *local)}

    @cached_property
    def scenarios_by_id(self) -> Mapping[str, Scenario]:
        """Every scenario."""
        return {scenario.id: scenario for scenario in self.scenarios}

    def nearest_id(self, name: str) -> str | None:
        """The id of the published mock or scenario with this id or urlId in another case; None if there is none."""
        wanted = name.casefold()
        ids = {scenario.url_id.casefold(): scenario.id for scenario in self.scenarios}
        ids |= {id_.casefold(): id_ for id_ in (*self.scenarios_by_id, *(mock.id for mock in self.mocks))}
        return ids.get(wanted)

    def active_mocks(self, session: Session) -> tuple[Mock, ...]:
        """The active mocks of a session, by precedence: if two answer the same route, the first wins.

        Overrides take precedence over the scenario's mocks, and later ones over earlier ones. So the last override
        comes first, and the scenario's first mock last. A mock that is in both counts once, as an override. Ids that
        the catalog lacks are left out.
        """
        scenario = self.scenarios_by_id.get(session.scenario) if session.scenario is not None else None
        stack = session.overrides if scenario is None else (*scenario.mocks, *session.overrides)
        known = self.mocks_by_id
        return tuple(known[id_] for id_ in dict.fromkeys(reversed(stack)) if id_ in known)


class CatalogDiff(Struct, frozen=True, rename="camel"):
    """The differences between two catalogs, as sorted ids; true if there are any.

    `mocks_…` are published mocks: one that becomes scenario-local counts as removed. A scenario has changed if its
    name, its `url_id` or its mocks have, including local ones.
    """

    mocks_added: tuple[str, ...] = ()
    mocks_removed: tuple[str, ...] = ()
    mocks_changed: tuple[str, ...] = ()
    scenarios_added: tuple[str, ...] = ()
    scenarios_removed: tuple[str, ...] = ()
    scenarios_changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(msgspec.structs.astuple(self))


class ScenarioPage(Struct, frozen=True, rename="camel"):
    """One page of scenarios, by name; `next_before` is None on the last."""

    scenarios: tuple[Scenario, ...]
    next_before: str | None


T = TypeVar("T", Mock, Scenario)


def canonical(catalog: Catalog) -> Catalog:
    """The catalog in its stored order: mocks and scenarios by id; a scenario's mocks keep their order."""
    return Catalog(
        tuple(sorted(catalog.mocks, key=lambda mock: mock.id)),
        tuple(
            msgspec.structs.replace(scenario, local_mocks=tuple(sorted(scenario.local_mocks, key=lambda mock: mock.id)))
            for scenario in sorted(catalog.scenarios, key=lambda scenario: scenario.id)
        ),
    )


def diff_catalogs(old: Catalog | None, new: Catalog | None) -> CatalogDiff:
    """What changes from `old` to `new`; None is an environment without a catalog."""
    old, new = canonical(old or Catalog()), canonical(new or Catalog())
    return CatalogDiff(*_diff(old.mocks, new.mocks), *_diff(old.scenarios, new.scenarios))


def page_scenarios(
    catalog: Catalog | None, limit: int = 50, search: str | None = None, before: str | None = None
) -> ScenarioPage:
    """One page of a catalog's scenarios, by name without regard to case, then by id.

    Parameters
    ----------
    limit : int
        1 to 100.
    search : str, optional
        Only scenarios whose name contains this text, without regard to case; at most 200 characters.
    before : str, optional
        `ScenarioPage.next_before` of the previous page.

    Raises
    ------
    InvalidQueryError
    """
    validate_limit(limit)
    if search is not None and len(search) > MAX_SEARCH_LENGTH:
        raise InvalidQueryError(f"search must be at most {MAX_SEARCH_LENGTH} characters long.")
    after = ("", "") if before is None else decode_cursor(before, tuple[str, str], "before")
    wanted = (search or "").casefold()
    scenarios = catalog.scenarios if catalog is not None else ()
    rest = sorted(
        (scenario for scenario in scenarios if wanted in scenario.name.casefold() and _place(scenario) > after),
        key=_place,
    )
    page = tuple(rest[:limit])
    return ScenarioPage(page, encode_cursor(_place(page[-1])) if len(rest) > limit else None)


def _place(scenario: Scenario) -> tuple[str, str]:
    """The sort key of a scenario in a list."""
    return scenario.name.casefold(), scenario.id


def _diff(old: Iterable[T], new: Iterable[T]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Ids that were added, removed and changed."""
    before: dict[str, Any] = {item.id: item for item in old}
    after: dict[str, Any] = {item.id: item for item in new}
    return (
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(before.keys() - after.keys())),
        tuple(sorted(id_ for id_ in after.keys() & before.keys() if after[id_] != before[id_])),
    )
