"""Catalogs as values: precedence, differences, pages of scenarios."""

from __future__ import annotations

import pytest

from sessionstore import Catalog, CatalogDiff, InvalidQueryError, Mock, Scenario, Session, diff_catalogs
from sessionstore.catalog.model import page_scenarios

CATALOG = Catalog(
    mocks=(Mock("ovr_a", "A"), Mock("ovr_b", "B"), Mock("ovr_c", "C")),
    scenarios=(
        Scenario("scn_x", "X", "x", ("ovr_a", "ovr_own", "ovr_b"), (Mock("ovr_own", "Own"),)),
        Scenario("scn_y", "Y", "y"),
    ),
)


def session(scenario: str | None, *overrides: str) -> Session:
    return Session(
        project="checkout", environment="staging", session_key="ci-42", scenario=scenario, overrides=overrides
    )


@pytest.mark.parametrize(
    ("scenario", "overrides", "active"),
    [
        (None, (), ()),
        # The later override is on top.
        (None, ("ovr_a", "ovr_c"), ("ovr_c", "ovr_a")),
        # So is the later mock of a scenario, its own ones included.
        ("scn_x", (), ("ovr_b", "ovr_own", "ovr_a")),
        # The session's own are on top of the scenario's; one that is in both counts once, on top.
        ("scn_x", ("ovr_c", "ovr_a"), ("ovr_a", "ovr_c", "ovr_b", "ovr_own")),
        ("scn_y", ("ovr_c",), ("ovr_c",)),
        # What the catalog does not have is left out.
        ("scn_gone", ("ovr_gone", "ovr_a"), ("ovr_a",)),
    ],
)
def test_active_mocks_come_in_order_of_precedence(
    scenario: str | None, overrides: tuple[str, ...], active: tuple[str, ...]
) -> None:
    mocks = CATALOG.active_mocks(session(scenario, *overrides))
    assert tuple(mock.id for mock in mocks) == active
    assert all(mock.name for mock in mocks)


def test_a_diff_lists_added_removed_and_changed_ids() -> None:
    new = Catalog(
        mocks=(Mock("ovr_d", "D"), Mock("ovr_b", "B renamed"), Mock("ovr_a", "A")),
        scenarios=(
            Scenario("scn_z", "Z", "z"),
            Scenario("scn_x", "X", "x", ("ovr_a", "ovr_b", "ovr_own"), (Mock("ovr_own", "Own"),)),
        ),
    )
    assert diff_catalogs(CATALOG, new) == CatalogDiff(
        mocks_added=("ovr_d",),
        mocks_removed=("ovr_c",),
        mocks_changed=("ovr_b",),
        scenarios_added=("scn_z",),
        scenarios_removed=("scn_y",),
        scenarios_changed=("scn_x",),
    )


def test_no_difference_is_false() -> None:
    # The order in which mocks and scenarios are written down is no difference.
    other_order = Catalog(CATALOG.mocks[::-1], CATALOG.scenarios[::-1])
    assert not diff_catalogs(CATALOG, other_order)
    assert not diff_catalogs(None, Catalog())
    assert diff_catalogs(CATALOG, None).mocks_removed == ("ovr_a", "ovr_b", "ovr_c")
    assert diff_catalogs(None, CATALOG).scenarios_added == ("scn_x", "scn_y")


def test_a_mock_that_becomes_scenario_local_is_removed_from_the_published_ones() -> None:
    new = Catalog(CATALOG.mocks[:2], (Scenario("scn_y", "Y", "y", ("ovr_c",), (Mock("ovr_c", "C"),)),))
    diff = diff_catalogs(CATALOG, new)
    assert (diff.mocks_removed, diff.scenarios_changed) == (("ovr_c",), ("scn_y",))


NAMES = ("beta", "Alpha", "ALPHA", "gamma", "Straße", "strasse 2", "ÄRGER")
MANY = Catalog(scenarios=tuple(Scenario(f"scn_{i}", name, f"u{i}") for i, name in enumerate(NAMES)))


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_go_through_all_scenarios_by_name_then_id(limit: int) -> None:
    names: list[str] = []
    before: str | None = None
    while True:
        page = page_scenarios(MANY, limit, None, before)
        names += [scenario.name for scenario in page.scenarios]
        before = page.next_before
        if before is None:
            break
        assert len(page.scenarios) == limit
        assert before.replace("-", "").replace("_", "").isalnum()
    assert names == ["Alpha", "ALPHA", "beta", "gamma", "Straße", "strasse 2", "ÄRGER"]


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("ALPHA", ["Alpha", "ALPHA"]),
        ("strasse", ["Straße", "strasse 2"]),
        ("ärg", ["ÄRGER"]),
        ("a", ["Alpha", "ALPHA", "beta", "gamma", "Straße", "strasse 2"]),
        ("nothing", []),
        ("", ["Alpha", "ALPHA", "beta", "gamma", "Straße", "strasse 2", "ÄRGER"]),
    ],
)
def test_search_goes_by_name_without_regard_to_case(search: str, names: list[str]) -> None:
    assert [scenario.name for scenario in page_scenarios(MANY, 100, search).scenarios] == names


def test_a_page_continues_even_if_its_scenario_was_removed() -> None:
    before = page_scenarios(MANY, 3).next_before
    rest = Catalog(scenarios=tuple(scenario for scenario in MANY.scenarios if scenario.name != "beta"))
    assert [s.name for s in page_scenarios(rest, 2, None, before).scenarios] == ["gamma", "Straße"]


def test_without_a_catalog_the_page_is_empty() -> None:
    assert page_scenarios(None) == page_scenarios(Catalog())
    assert page_scenarios(None).next_before is None


@pytest.mark.parametrize(
    ("limit", "search", "before"),
    [(0, None, None), (101, None, None), (True, None, None), (50, "x" * 201, None)]
    + [(50, None, before) for before in ("", "x", "ä", "W10", "WzEsMl0", "bnVsbA")],
)
def test_bad_queries(limit: int, search: str | None, before: str | None) -> None:
    with pytest.raises(InvalidQueryError):
        page_scenarios(MANY, limit, search, before)
