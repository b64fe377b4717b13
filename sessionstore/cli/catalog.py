"""``sessionstore catalog apply | show | diff``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from ..catalog.document import MAX_DOCUMENT_BYTES, CatalogDocument, parse_catalog_document
from ..errors import InvalidCatalogError
from ..protocol.catalog_operations import CatalogReport
from ..sync.store import SessionStore
from .options import EnvironmentOption, JsonOption, NoWaitOption, ProjectOption, on_store
from .output import effect_document, print_json, print_table, say

app = typer.Typer(help="The mocks and scenarios that environments offer.", no_args_is_help=True, rich_markup_mode=None)

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="The document, .json or .toml; '-' reads JSON from standard input.")
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Remove the catalogs of environments that the document lacks.")
]


@app.command()
@on_store("lease")
def apply(
    store: SessionStore,
    file: FileArgument,
    prune: PruneOption = False,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a project's environments offer what the document says."""
    document = _read(file)
    report = store.project(document.project).apply_catalog(document, prune=prune, wait=not no_wait)
    _print_report(report, as_json)
    if report.sessions and not as_json:
        say(
            f"Deactivated removed mocks and scenarios in {report.sessions} session{'s' if report.sessions > 1 else ''}."
        )


@app.command()
@on_store()
def diff(store: SessionStore, file: FileArgument, prune: PruneOption = False, as_json: JsonOption = False) -> None:
    """Show what apply would change. The exit code is 0 for no change and 1 for any."""
    document = _read(file)
    report = store.project(document.project).diff_catalog(document, prune=prune)
    _print_report(report, as_json)
    if report.changed:
        raise typer.Exit(1)


@app.command()
@on_store()
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
    if as_json:
        print_json(document)
        return
    rows: list[tuple[str | tuple[str, ...] | None, ...]] = []
    for name, catalog in document.environments.items():
        rows += [(name, "mock", mock.id, mock.name, None, ()) for mock in catalog.mocks]
        for scenario in catalog.scenarios:
            rows.append((name, "scenario", scenario.id, scenario.name, scenario.url_id, scenario.mocks))
            rows += [(name, "local mock", mock.id, mock.name, None, ()) for mock in scenario.local_mocks]
    print_table(("ENVIRONMENT", "KIND", "ID", "NAME", "URL ID", "MOCKS"), rows)


def _read(file: str) -> CatalogDocument:
    """Read a document; the name of the file tells its syntax."""
    syntax: Literal["json", "toml"] = "toml" if file.lower().endswith(".toml") else "json"
    if file != "-" and not file.lower().endswith((".json", ".toml")):
        raise InvalidCatalogError(f"{file}: a document is a .json or .toml file.")
    try:
        if file == "-":
            if sys.stdin is None:
                raise InvalidCatalogError("-: standard input is closed.")
            data = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as exc:
        raise InvalidCatalogError(f"{file}: {exc.strerror or exc}.") from exc
    try:
        return parse_catalog_document(data, syntax)
    except InvalidCatalogError as exc:
        raise InvalidCatalogError(f"{file}: {exc}") from exc


def _report_document(report: CatalogReport) -> dict[str, Any]:
    """A report for JSON."""
    return {
        "project": report.project,
        "changed": report.changed,
        "environments": [
            {
                "environment": entry.environment,
                "change": entry.change,
                "sessions": entry.sessions,
                **msgspec.to_builtins(entry.diff),
                "effect": effect_document(entry.effect),
            }
            for entry in report.environments
        ],
        "leftAlone": report.left_alone,
    }


def _print_report(report: CatalogReport, as_json: bool) -> None:
    if as_json:
        print_json(_report_document(report))
        return
    rows = []
    for entry in report.environments:
        rows.append((entry.environment, entry.change, "", ""))
        for kind, added, removed, changed in (
            ("mock", entry.diff.mocks_added, entry.diff.mocks_removed, entry.diff.mocks_changed),
            ("scenario", entry.diff.scenarios_added, entry.diff.scenarios_removed, entry.diff.scenarios_changed),
        ):
            for sign, ids in (("+", added), ("-", removed), ("~", changed)):
                rows += [("", "", f"{sign} {kind}", id_) for id_ in ids]
    for name in report.left_alone:
        rows.append((name, "left alone", "not in the document", ""))
    print_table(("ENVIRONMENT", "CHANGE", "WHAT", "ID"), [[cell or " " for cell in row] for row in rows])
