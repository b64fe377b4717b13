"""``sessionstore catalog apply | show | diff``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from ..catalog.document import CatalogDocument, parse_catalog_document
from ..errors import InvalidCatalogError
from ..protocol.catalog_operations import CatalogReport
from ..sync.store import SessionStore
from .options import EnvironmentOption, JsonOption, NoWaitOption, ProjectOption, on_store
from .output import effect_document, print_result, say

app = typer.Typer(help="The mocks and scenarios of environments.", no_args_is_help=True, rich_markup_mode=None)

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="The document, .json or .toml; '-' reads JSON from standard input.")
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Remove the catalogs of environments that the document lacks.")
]

#: How a table marks each kind of change.
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


@app.command()
@on_store
def apply(
    store: SessionStore,
    file: FileArgument,
    prune: PruneOption = False,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give a project's environments the catalogs of a document."""
    document = _read(file)
    report = store.project(document.project).apply_catalog(document, prune=prune, wait=not no_wait)
    _print_report(report, as_json)
    if report.sessions and not as_json:
        say(
            f"Deactivated removed mocks and scenarios in {report.sessions} session{'s' if report.sessions > 1 else ''}."
        )


@app.command()
@on_store
def diff(store: SessionStore, file: FileArgument, prune: PruneOption = False, as_json: JsonOption = False) -> None:
    """Show what apply would change. The exit code is 0 for no change and 1 for any."""
    document = _read(file)
    report = store.project(document.project).diff_catalog(document, prune=prune)
    _print_report(report, as_json)
    if report.changed:
        raise typer.Exit(1)


@app.command()
@on_store
def show(
    store: SessionStore,
    project: ProjectOption,
    environment: EnvironmentOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the applied catalog; --json prints a document that apply takes."""
    if environment is None:
        document = store.project(project).catalog()
    else:
        catalog = store.environment(project, environment).catalog()
        document = CatalogDocument(project, {} if catalog is None else {environment: catalog})
    rows: list[tuple[str | tuple[str, ...] | None, ...]] = []
    for name, catalog in document.environments.items():
        rows += [(name, "mock", mock.id, mock.name, None, ()) for mock in catalog.mocks]
        for scenario in catalog.scenarios:
            rows.append((name, "scenario", scenario.id, scenario.name, scenario.url_id, scenario.mocks))
            rows += [(name, "local mock", mock.id, mock.name, None, ()) for mock in scenario.local_mocks]
    print_result(as_json, document, ("ENVIRONMENT", "KIND", "ID", "NAME", "URL ID", "MOCKS"), rows)


def _read(file: str) -> CatalogDocument:
    """Read a document. The file's suffix determines its syntax."""
    syntax: Literal["json", "toml"] = "toml" if file.lower().endswith(".toml") else "json"
    if file != "-" and not file.lower().endswith((".json", ".toml")):
        raise InvalidCatalogError(f"{file}: a document is a .json or .toml file.")
    if file == "-" and sys.stdin is None:
        raise InvalidCatalogError("-: standard input is closed.")
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return parse_catalog_document(data, syntax)
    except OSError as exc:
        raise InvalidCatalogError(f"{file}: {exc.strerror or exc}.") from exc
    except InvalidCatalogError as exc:
        raise InvalidCatalogError(f"{file}: {exc}") from exc


def _report_document(report: CatalogReport) -> dict[str, Any]:
    """A report for JSON."""
    environments = []
    for entry in report.environments:
        document = msgspec.to_builtins(entry) | {"effect": effect_document(entry.effect)}
        environments.append(document | document.pop("diff"))
    return {
        "project": report.project,
        "changed": report.changed,
        "environments": environments,
        "leftAlone": report.left_alone,
    }


def _print_report(report: CatalogReport, as_json: bool) -> None:
    rows = []
    for entry in report.environments:
        rows.append((entry.environment, entry.change, " ", " "))
        for name, ids in msgspec.structs.asdict(entry.diff).items():
            kind, change = name.split("s_")
            rows += [(" ", " ", f"{_SIGNS[change]} {kind}", id_) for id_ in ids]
    rows += [(name, "left alone", "not in the document", " ") for name in report.left_alone]
    print_result(as_json, _report_document(report), ("ENVIRONMENT", "CHANGE", "WHAT", "ID"), rows)
