"""The document that declares the catalogs of a project's environments, and its checks.

Each project has one document, in JSON or TOML of the same structure. Decoding is strict: an unknown field is an error,
since it may be a typo. Every error names the place, as in ``environments.staging.scenarios[2].mocks[0]``. An entry with
``published`` false is a draft: it is checked like the others and then left out. docs/catalog.md explains the fields.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from ..errors import InvalidCatalogError, InvalidInputError
from ..session import validate_override, validate_scenario, validate_slug
from .model import Catalog, Mock, Scenario, canonical

#: Bytes of a document.
MAX_DOCUMENT_BYTES = 8 * 1024 * 1024
#: Bytes of a document in TOML, and parts of a dotted key. tomllib takes some 500 bytes of memory for each part of each
#: key, and its time grows with the square of a key's depth.
MAX_TOML_BYTES = 1024 * 1024
MAX_TOML_DEPTH = 8
#: Bytes of one environment's catalog as JSON: each change sends the whole catalog to every view.
MAX_CATALOG_BYTES = 1024 * 1024
#: Environments of one document.
MAX_ENVIRONMENTS = 100
#: Mocks of one environment, scenario-local ones and drafts included.
MAX_MOCKS = 5000
#: Scenarios of one environment, drafts included.
MAX_SCENARIOS = 1000
#: Mocks of one scenario.
MAX_SCENARIO_MOCKS = 200
#: Code points of a mock's or scenario's name.
MAX_NAME_LENGTH = 200

T = TypeVar("T", bound=Struct)


class CatalogDocument(Struct, frozen=True, rename="camel"):
    """A project's environments and their catalogs, checked, without drafts."""

    project: str
    environments: dict[str, Catalog]


class _Outline(Struct, forbid_unknown_fields=True):
    project: str
    environments: dict[str, Any]


class _Mock(Mock, forbid_unknown_fields=True, frozen=True):
    published: bool = True


class _LocalMock(Mock, forbid_unknown_fields=True, frozen=True):
    pass


class _Scenario(Scenario, forbid_unknown_fields=True, frozen=True):
    local_mocks: tuple[_LocalMock, ...] = ()
    published: bool = True


class _Environment(Struct, forbid_unknown_fields=True):
    mocks: list[_Mock] = []
    scenarios: list[_Scenario] = []


def parse_catalog_document(data: bytes | str, syntax: Literal["json", "toml"]) -> CatalogDocument:
    """Read a document.

    Raises
    ------
    InvalidCatalogError
        The message names the place.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidCatalogError(f"The document is larger than {MAX_DOCUMENT_BYTES} bytes; split the project.")
    try:
        text = data if isinstance(data, str) else data.decode()
        if syntax == "toml":
            _check_toml(text)
            value = tomllib.loads(text)
        else:
            value = json.loads(text, object_pairs_hook=unique_object)
    except (ValueError, RecursionError) as exc:
        raise InvalidCatalogError(f"The document is not valid {syntax.upper()}: {exc}.") from exc
    return catalog_document(value)


#: Strings and comments of TOML, also where their end is missing, so that each is matched once.
_TOML_TEXT = re.compile(
    r""""{3}(?:[^"\\]|\\.|"{1,2}+(?!"))*+(?:"{3,5}+)?+"""
    r"""|'{3}(?:[^']|'{1,2}+(?!'))*+(?:'{3,5}+)?+"""
    r"""|"(?:[^"\\\n]|\\.)*+"?+|'[^'\n]*+'?+|#[^\n]*+""",
    re.DOTALL,
)
#: A key with more parts than are allowed, once each string is one letter.
_TOML_TOO_DEEP = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MAX_TOML_DEPTH}}}")


def _check_toml(text: str) -> None:
    """Bound what parsing costs, before it begins."""
    if len(text) > MAX_TOML_BYTES:
        raise InvalidCatalogError(f"A TOML document has at most {MAX_TOML_BYTES} bytes; write a larger one as JSON.")
    if _TOML_TOO_DEEP.search(_TOML_TEXT.sub("s", text)):
        raise InvalidCatalogError(f"The document has a key of more than {MAX_TOML_DEPTH} parts; no field is that deep.")


class DuplicateNameError(ValueError):
    """A JSON object has the same name twice."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name[:80]!r} appears twice in one object; remove one of them")
        self.name = name


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object for ``json.loads(object_pairs_hook=...)``; TOML forbids duplicate names itself.

    Raises
    ------
    DuplicateNameError
        Else the first of two values would be lost silently.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateNameError(next(name for name in names if names.count(name) > 1))
    return value


def catalog_document(value: Any) -> CatalogDocument:
    """Check a document that is plain data: the result of `json.load` or `tomllib.load`.

    Raises
    ------
    InvalidCatalogError
        The message names the place.
    """
    outline = _convert(value, _Outline, "")
    with _at("project"):
        validate_slug(outline.project, "project")
    if len(outline.environments) > MAX_ENVIRONMENTS:
        raise InvalidCatalogError(f"environments: at most {MAX_ENVIRONMENTS}; there are {len(outline.environments)}.")
    catalogs = {}
    for name, environment in outline.environments.items():
        place = f"environments.{name[:80]}"
        with _at(place):
            validate_slug(name, "environment")
        catalogs[name] = _check_environment(_convert(environment, _Environment, place), place)
    return CatalogDocument(outline.project, catalogs)


def check_project(document: CatalogDocument | dict[str, Any], project: str) -> CatalogDocument:
    """Check plain data, and that the document belongs to `project`.

    Raises
    ------
    InvalidCatalogError
    """
    if not isinstance(document, CatalogDocument):
        document = catalog_document(document)
    if document.project != project:
        raise InvalidCatalogError(f"project: the document belongs to {document.project!r}, not to {project!r}.")
    return document


def _check_environment(environment: _Environment, place: str) -> Catalog:
    """Check one environment's part; the catalog leaves drafts out."""
    count = len(environment.mocks) + sum(len(scenario.local_mocks) for scenario in environment.scenarios)
    _check_count(count, MAX_MOCKS, f"{place}.mocks", "with scenario-local ones")
    _check_count(len(environment.scenarios), MAX_SCENARIOS, f"{place}.scenarios")

    seen = _Seen()
    for i, mock in enumerate(environment.mocks):
        _check_entry(mock, f"{place}.mocks[{i}]", validate_override, seen)
    for i, scenario in enumerate(environment.scenarios):
        at = f"{place}.scenarios[{i}]"
        _check_entry(scenario, at, validate_scenario, seen)
        with _at(f"{at}.urlId"):
            validate_slug(scenario.url_id, "urlId")
        seen.add(f"{at}.urlId", scenario.url_id)
        for j, local in enumerate(scenario.local_mocks):
            _check_entry(local, f"{at}.localMocks[{j}]", validate_override, seen)

    published = {mock.id for mock in environment.mocks if mock.published}
    drafts = {mock.id for mock in environment.mocks if not mock.published}
    owners = {local.id: scenario.id for scenario in environment.scenarios for local in scenario.local_mocks}
    for i, scenario in enumerate(environment.scenarios):
        _check_mocks(scenario, f"{place}.scenarios[{i}]", published, drafts, owners)

    mocks = tuple(Mock(mock.id, mock.name) for mock in environment.mocks if mock.published)
    scenarios = [scenario for scenario in environment.scenarios if scenario.published]
    catalog = canonical(Catalog(mocks, msgspec.convert(scenarios, tuple[Scenario, ...], from_attributes=True)))
    size = len(msgspec.json.encode(catalog))
    if size > MAX_CATALOG_BYTES:
        raise InvalidCatalogError(f"{place}: the catalog is {size} bytes as JSON; at most {MAX_CATALOG_BYTES} are.")
    return catalog


def _check_mocks(
    scenario: _Scenario, place: str, published: set[str], drafts: set[str], owners: Mapping[str, str]
) -> None:
    """Check that a scenario names each mock once, that each is published or local to it, and all its local ones."""
    _check_count(len(scenario.mocks), MAX_SCENARIO_MOCKS, f"{place}.mocks")
    named = set()
    for i, id_ in enumerate(scenario.mocks):
        at = f"{place}.mocks[{i}]"
        with _at(at):
            validate_override(id_)
        if id_ in named:
            raise InvalidCatalogError(f"{at}: the mock {id_!r} is named twice.")
        named.add(id_)
        if owners.get(id_) == scenario.id or id_ in published:
            continue
        # A draft scenario may be ahead of its mocks.
        if id_ in drafts and not scenario.published:
            continue
        why = "does not exist in this environment"
        if id_ in drafts:
            why = "is a draft; publish it, or make the scenario a draft too"
        elif id_ in owners:
            why = f"belongs to the scenario {owners[id_]!r} alone"
        raise InvalidCatalogError(f"{at}: the mock {id_!r} {why}.")
    for i, local in enumerate(scenario.local_mocks):
        if local.id not in named:
            raise InvalidCatalogError(
                f"{place}.localMocks[{i}]: add the mock {local.id!r} to the scenario's mocks, too: their order decides "
                "which mock wins."
            )


class _Seen:
    """The ids and urlIds of an environment, which must be unique, each with its first place."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], str] = {}

    def add(self, place: str, value: str) -> None:
        kind = "urlId" if place.endswith(".urlId") else "id"
        first = self._places.setdefault((kind, value), place)
        if first != place:
            raise InvalidCatalogError(f"{place}: the {kind} {value!r} is taken by {first}.")


def _check_entry(
    entry: _Mock | _LocalMock | _Scenario, place: str, validate_id: Callable[[str], str], seen: _Seen
) -> None:
    with _at(f"{place}.id"):
        validate_id(entry.id)
    seen.add(f"{place}.id", entry.id)
    if not entry.name.strip() or len(entry.name) > MAX_NAME_LENGTH or not entry.name.isprintable():
        raise InvalidCatalogError(f"{place}.name: a name is 1 to {MAX_NAME_LENGTH} printable characters.")


def _check_count(count: int, most: int, place: str, what: str = "") -> None:
    if count > most:
        raise InvalidCatalogError(f"{place}: at most {most}{' ' if what else ''}{what}; there are {count}.")


_PLACE = re.compile(r"(?P<message>.*?)(?: - at `\$(?P<place>.*)`)?\Z", re.DOTALL)


def _convert(value: Any, kind: type[T], place: str) -> T:
    """Decode plain data strictly; msgspec's own path is continued from `place`."""
    try:
        return msgspec.convert(value, kind)
    except UnicodeEncodeError as exc:
        raise InvalidCatalogError(f"{place or 'The document'}: a name is not Unicode text.") from exc
    except msgspec.ValidationError as exc:
        match = _PLACE.match(str(exc))
        assert match is not None, "the pattern matches every text"
        at = f"{place}{match['place'] or ''}".removeprefix(".")
        raise InvalidCatalogError(f"{at or 'The document'}: {match['message']}.") from exc


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Prepend the place to an error of the shared checks."""
    try:
        yield
    except InvalidInputError as exc:
        raise InvalidCatalogError(f"{place}: {exc}") from exc
