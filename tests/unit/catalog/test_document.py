"""The catalog document: what is accepted, what is refused and where, and what is made of it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from sessionstore import Catalog, InvalidCatalogError, Mock, Scenario, parse_catalog_document
from sessionstore.catalog.document import (
    MAX_CATALOG_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_ENVIRONMENTS,
    MAX_MOCKS,
    MAX_SCENARIO_MOCKS,
    MAX_SCENARIOS,
    MAX_TOML_BYTES,
    MAX_TOML_DEPTH,
    catalog_document,
    check_project,
)

DOCUMENT: dict[str, Any] = {
    "project": "checkout",
    "environments": {
        "staging": {
            "mocks": [
                {"id": "ovr_b", "name": "B"},
                {"id": "ovr_a", "name": "A"},
                {"id": "ovr_draft", "name": "Draft", "published": False},
            ],
            "scenarios": [
                {"id": "scn_y", "name": "Y", "urlId": "y"},
                {
                    "id": "scn_x",
                    "name": "X",
                    "urlId": "x",
                    "mocks": ["ovr_b", "ovr_own", "ovr_a"],
                    "localMocks": [{"id": "ovr_own", "name": "Own"}],
                },
                {
                    "id": "scn_draft",
                    "name": "Draft",
                    "urlId": "draft",
                    "mocks": ["ovr_draft", "ovr_b"],
                    "published": False,
                },
            ],
        },
        "empty": {},
    },
}

TOML = """
project = "checkout"

[environments.empty]

[environments.staging]
mocks = [{ id = "ovr_b", name = "B" }, { id = "ovr_a", name = "A" }]

[[environments.staging.scenarios]]
id = "scn_x"
name = "X"
urlId = "x"
mocks = ["ovr_b", "ovr_own", "ovr_a"]
localMocks = [{ id = "ovr_own", name = "Own" }]

[[environments.staging.scenarios]]
id = "scn_y"
name = "Y"
urlId = "y"
"""

STAGING = Catalog(
    mocks=(Mock("ovr_a", "A"), Mock("ovr_b", "B")),
    scenarios=(
        Scenario("scn_x", "X", "x", ("ovr_b", "ovr_own", "ovr_a"), (Mock("ovr_own", "Own"),)),
        Scenario("scn_y", "Y", "y"),
    ),
)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The document with one place set: ``environments/staging/mocks/0/id``; ``+`` appends."""
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path.split("/")
    place: Any = document
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if last == "+":
        place.append(value)
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return document


def test_a_document_becomes_catalogs_in_one_order_without_drafts() -> None:
    document = catalog_document(DOCUMENT)
    assert document.project == "checkout"
    assert document.environments == {"staging": STAGING, "empty": Catalog()}


@pytest.mark.parametrize(
    ("text", "syntax"), [(json.dumps(DOCUMENT), "json"), (json.dumps(DOCUMENT).encode(), "json"), (TOML, "toml")]
)
def test_json_and_toml_are_the_same(text: str | bytes, syntax: Any) -> None:
    assert parse_catalog_document(text, syntax) == catalog_document(DOCUMENT)
    assert parse_catalog_document(TOML.encode(), "toml") == catalog_document(DOCUMENT)


@pytest.mark.parametrize(
    ("path", "value", "place", "reason"),
    [
        ("project", 5, "project", "Expected `str`"),
        ("project", "a:b", "project", "not a slug"),
        ("environments", [], "environments", "Expected `object`"),
        ("environments/sta ging", {}, "environments.sta ging", "not a slug"),
        ("environments/staging", None, "environments.staging", "Expected `object`"),
        ("environments/staging/moks", [], "environments.staging", "unknown field `moks`"),
        ("projct", "x", "The document", "unknown field `projct`"),
        ("environments/staging/mocks/1", {"id": "ovr_c"}, "environments.staging.mocks[1]", "missing required field"),
        ("environments/staging/mocks/1/id", "mock_a", "environments.staging.mocks[1].id", "not an override id"),
        ("environments/staging/mocks/1/id", "ovr_b", "environments.staging.mocks[1].id", "taken by environments.stag"),
        ("environments/staging/mocks/2/id", "ovr_b", "environments.staging.mocks[2].id", "taken by"),
        ("environments/staging/mocks/1/name", "", "environments.staging.mocks[1].name", "1 to 200 printable"),
        ("environments/staging/mocks/1/name", "a" * 201, "environments.staging.mocks[1].name", "1 to 200 printable"),
        ("environments/staging/mocks/1/name", "a\x1b[31m", "environments.staging.mocks[1].name", "printable"),
        ("environments/staging/mocks/1/name", "\ud800", "environments.staging.mocks[1].name", "printable"),
        ("environments/staging/mocks/1/name", 4, "environments.staging.mocks[1].name", "Expected `str`"),
        ("environments/staging/mocks/1/published", 1, "environments.staging.mocks[1].published", "Expected `bool`"),
        ("environments/staging/scenarios/1/id", "ovr_x", "environments.staging.scenarios[1].id", "not a scenario id"),
        ("environments/staging/scenarios/1/id", "scn_y", "environments.staging.scenarios[1].id", "taken by"),
        ("environments/staging/scenarios/1/urlId", "a b", "environments.staging.scenarios[1].urlId", "not a slug"),
        ("environments/staging/scenarios/1/urlId", "y", "environments.staging.scenarios[1].urlId", "taken by"),
        ("environments/staging/scenarios/1/url_id", "z", "environments.staging.scenarios[1]", "unknown field"),
        (
            "environments/staging/scenarios/1/mocks/+",
            "ovr_q",
            "environments.staging.scenarios[1].mocks[3]",
            "not exist",
        ),
        ("environments/staging/scenarios/1/mocks/+", "q", "environments.staging.scenarios[1].mocks[3]", "override id"),
        ("environments/staging/scenarios/1/mocks/+", "ovr_a", "environments.staging.scenarios[1].mocks[3]", "twice"),
        (
            "environments/staging/scenarios/1/mocks/+",
            "ovr_draft",
            "environments.staging.scenarios[1].mocks[3]",
            "draft",
        ),
        ("environments/staging/scenarios/0/mocks", ["ovr_own"], "environments.staging.scenarios[0].mocks[0]", "scn_x"),
        (
            "environments/staging/scenarios/1/mocks/1",
            "ovr_draft",
            "environments.staging.scenarios[1].mocks[1]",
            "draft",
        ),
        (
            "environments/staging/scenarios/1/mocks",
            [],
            "environments.staging.scenarios[1].localMocks[0]",
            "add the mock 'ovr_own'",
        ),
        (
            "environments/staging/scenarios/1/localMocks/+",
            {"id": "ovr_a", "name": "A"},
            "environments.staging.scenarios[1].localMocks[1].id",
            "taken by environments.staging.mocks[1].id",
        ),
        (
            "environments/staging/scenarios/1/localMocks/0/published",
            True,
            "environments.staging.scenarios[1].localMocks[0]",
            "unknown field `published`",
        ),
    ],
)
def test_an_error_names_the_place(path: str, value: Any, place: str, reason: str) -> None:
    with pytest.raises(InvalidCatalogError) as caught:
        catalog_document(changed(path, value))
    message = str(caught.value)
    assert message.startswith(f"{place}: ")
    assert reason in message


@pytest.mark.parametrize(
    ("text", "syntax", "reason"),
    [
        ("{", "json", "not valid JSON"),
        ("[" * 100_000, "json", "not valid JSON"),
        (b"\xff", "json", "not valid JSON"),
        ("[]", "json", "The document: Expected `object`"),
        ('{"project": "a", "project": "b"}', "json", "'project' appears twice in one object"),
        ('{"project": ' + "9" * 5000 + "}", "json", "not valid JSON"),
        ('{"project": "a", "environments": {}, "\\ud800": 1}', "json", "a name is not Unicode text"),
        ("project =", "toml", "not valid TOML"),
        ("project = " + "9" * 5000, "toml", "not valid TOML"),
        ("a = " + "[" * 100_000, "toml", "not valid TOML"),
        (b"\xff", "toml", "not valid TOML"),
        ("project = 2020-01-01\nenvironments = {}", "toml", "project: Expected `str`"),
        (" " * (MAX_DOCUMENT_BYTES + 1), "json", "larger than"),
        (" " * (MAX_TOML_BYTES + 1), "toml", "write a larger one as JSON"),
    ],
)
def test_rejects_data_that_is_no_document(text: str | bytes, syntax: Any, reason: str) -> None:
    with pytest.raises(InvalidCatalogError) as caught:
        parse_catalog_document(text, syntax)
    assert reason in str(caught.value)


DEEP = ".".join("a" * (MAX_TOML_DEPTH + 1)) + "=1"


class TestDepthOfToml:
    @pytest.mark.parametrize(
        "text",
        [
            DEEP,
            DEEP.replace(".", " \t.\t "),
            DEEP.replace("a", '"."'),
            DEEP.replace("a", "'='"),
            DEEP.replace("a", '"\\""'),
            DEEP.replace("a", "''"),
            f"[{DEEP[:-2]}]",
            f"[[{DEEP[:-2]}]]",
            f"x = {{{DEEP}}}",
            # Strings and comments that hide it from a parser that mistakes their quotes.
            f"x = ''' ' \" '''\n{DEEP}",
            f"x = {{b = ''' ' \" ''', {DEEP}, c = \"\"}}",
            f'x = {{b = """ \' " """, {DEEP}, c = ""}}',
            f'x = """\\""""\n{DEEP}',
            f"x = '''a''''\n{DEEP}\ny = ''",
            f'# "\n{DEEP}\n# "',
            f'x = "#"\n{DEEP}',
            "a." * 20_000 + "a=1",
        ],
    )
    def test_is_bounded_before_it_is_parsed(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """tomllib takes 1.5 GiB for the last one, of 40 KB."""
        monkeypatch.delattr("tomllib.loads")

        with pytest.raises(InvalidCatalogError, match="a key of more than 8 parts"):
            parse_catalog_document(text, "toml")

    @pytest.mark.parametrize(
        "text",
        [
            ".".join("a" * MAX_TOML_DEPTH) + "=1",
            f'x = "{DEEP}"',
            f"x = '''\n{DEEP}\n'''",
            f"# {DEEP}",
            "x = 1979-05-27T07:32:00.999",
            "x = [1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]",
        ],
    )
    def test_of_strings_and_comments_does_not_count(self, text: str) -> None:
        with pytest.raises(InvalidCatalogError, match=r"unknown field|required field"):
            parse_catalog_document(text, "toml")

    @pytest.mark.parametrize(
        "unit", ["a", '"', "'", '"""', "'''", '\\"', '"\\"', '"a', "a ", "a.", ".", "#", '""\n', "a-"]
    )
    def test_takes_time_by_length_only(self, unit: str) -> None:
        """By its square, each of these would take minutes, and this test its time-out."""
        with pytest.raises(InvalidCatalogError):
            parse_catalog_document('x = "' + unit * (MAX_TOML_BYTES // len(unit) - 10), "toml")


def test_bounds_hold_at_the_bound_and_one_past_it() -> None:
    def mocks(count: int, prefix: str = "ovr_m") -> list[dict[str, Any]]:
        return [{"id": f"{prefix}{n}", "name": "M"} for n in range(count)]

    def scenarios(count: int) -> list[dict[str, Any]]:
        return [{"id": f"scn_{n}", "name": "S", "urlId": f"s{n}"} for n in range(count)]

    def check(place: str, at: dict[str, Any], past: dict[str, Any]) -> None:
        catalog_document({"project": "p", "environments": {"e": at}})
        with pytest.raises(InvalidCatalogError) as caught:
            catalog_document({"project": "p", "environments": {"e": past}})
        assert str(caught.value).startswith(f"environments.e{place}: ")

    check(".mocks", {"mocks": mocks(MAX_MOCKS)}, {"mocks": mocks(MAX_MOCKS + 1)})
    # Scenario-local mocks count too.
    own = {**scenarios(1)[0], "mocks": ["ovr_l0"], "localMocks": mocks(1, "ovr_l")}
    check(
        ".mocks",
        {"mocks": mocks(MAX_MOCKS - 1), "scenarios": [own]},
        {"mocks": mocks(MAX_MOCKS), "scenarios": [own]},
    )
    check(".scenarios", {"scenarios": scenarios(MAX_SCENARIOS)}, {"scenarios": scenarios(MAX_SCENARIOS + 1)})

    def bundle(count: int) -> dict[str, Any]:
        entries = mocks(count)
        return {"mocks": entries, "scenarios": [{**scenarios(1)[0], "mocks": [mock["id"] for mock in entries]}]}

    check(".scenarios[0].mocks", bundle(MAX_SCENARIO_MOCKS), bundle(MAX_SCENARIO_MOCKS + 1))

    def heavy(count: int) -> dict[str, Any]:
        return {"mocks": [{"id": f"ovr_m{n}", "name": "ü" * 200} for n in range(count)]}

    size = len('{"id":"ovr_m1000","name":""},') + 400
    check("", heavy(MAX_CATALOG_BYTES // size - 10), heavy(MAX_CATALOG_BYTES // size + 10))

    environments: dict[str, Any] = {f"e{n}": {} for n in range(MAX_ENVIRONMENTS)}
    catalog_document({"project": "p", "environments": environments})
    with pytest.raises(InvalidCatalogError, match=r"^environments: at most"):
        catalog_document({"project": "p", "environments": {**environments, "one-more": {}}})


def test_a_document_is_applied_to_its_own_project_only() -> None:
    assert check_project(DOCUMENT, "checkout") == catalog_document(DOCUMENT)
    with pytest.raises(InvalidCatalogError, match=r"^project: the document belongs to 'checkout'"):
        check_project(catalog_document(DOCUMENT), "other")
