"""``sessionstore catalog apply | show | diff``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from ..catalog.document import MAX_DOCUMENT_BYTES, CatalogDocument, parse_catalog_document
from ..errors import InvalidCatalogError
from ..options import DEFAULT_LEASE_S
from ..protocol.catalog_operations import CatalogReport
from ..protocol.keyspace import DEFAULT_PREFIX
from .options import (
    EnvironmentOption,
    JsonOption,
    LeaseOption,
    NoWaitOption,
    PrefixOption,
    ProjectOption,
    RedisUrlOption,
    opened,
)
from .output import effect_document, print_json, print_table, say

app = typer.Typer(
    help="What environments offer: published mocks and scenarios.", no_args_is_help=True, rich_markup_mode=None
)

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="The document, .json or .toml; '-' reads JSON from standard input.")
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Take away environments that the document does not have; else they stay.")
]


@app.command()
def apply(
    file: FileArgument,
    prune: PruneOption = False,
    no_wait: NoWaitOption = False,
    lease: LeaseOption = DEFAULT_LEASE_S,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """Make a project's environments offer what the document says."""
    document = _read(file)
    with opened(redis_url, prefix, lease_s=lease) as store:
        report = store.project(document.project).apply_catalog(document, prune=prune, wait=not no_wait)
    if as_json:
        print_json(_report_document(report))
        return
    _print_report(report)
    if report.sessions:
        say(f"Deactivated what is gone in {report.sessions} session{'s' if report.sessions > 1 else ''}.")


@app.command()
def diff(
    file: FileArgument,
    prune: PruneOption = False,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """Tell what apply would change: exit code 0 where nothing, 1 where something."""
    document = _read(file)
    with opened(redis_url, prefix) as store:
        report = store.project(document.project).diff_catalog(document, prune=prune)
    if as_json:
        print_json(_report_document(report))
    else:
        _print_report(report)
    if report.changed:
        raise typer.Exit(1)


@app.command()
def show(
    project: ProjectOption,
    environment: EnvironmentOption = None,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """Show what is applied; --json prints a document that apply takes."""
    with opened(redis_url, prefix) as store:
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
    """The document in a file; which syntax it has goes by its name."""
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


def _print_report(report: CatalogReport) -> None:
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
