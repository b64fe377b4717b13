"""``sessionstore catalog apply | show | diff``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from ..catalog.document import CatalogDocument, parse_catalog_document
from ..errors import InvalidCatalogError, InvalidInputError, NotFoundError
from ..protocol.catalog_operations import CatalogReport
from ..sync.store import SessionStore
from .options import EnvironmentOption, JsonOption, NoWaitOption, ProjectOption, ReplicasOption, on_store
from .output import count, effect_document, print_result, print_table, say

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
    project: Annotated[
        str | None,
        typer.Option(
            "--project", "-p", envvar="SESSIONSTORE_PROJECT", metavar="SLUG", help="The project of the document."
        ),
    ] = None,
    create: Annotated[bool, typer.Option("--create", help="Accept a document of another project.")] = False,
    prune: PruneOption = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Don't ask before it deactivates mocks and scenarios of live sessions.")
    ] = False,
    no_wait: NoWaitOption = False,
    replicas: ReplicasOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a project's environments the catalogs of a document."""
    document = _read(file)
    if project not in (None, document.project) and not create:
        raise InvalidCatalogError(
            f"The document is about project {document.project!r}, not {project!r} (--project, SESSIONSTORE_PROJECT); "
            "correct it, or give --create."
        )
    applied = store.project(document.project)
    if not yes:
        _confirm(applied.diff_catalog(document, prune=prune))
    report = applied.apply_catalog(document, prune=prune, wait=not no_wait, replicas=replicas)
    _print_report(report, as_json)
    if report.sessions and not as_json:
        say(f"Deactivated removed mocks and scenarios in {count(report.sessions, 'session')}.")


@app.command()
@on_store
def diff(store: SessionStore, file: FileArgument, prune: PruneOption = False, as_json: JsonOption = False) -> None:
    """Show what apply would change. The exit code is 0 for no change and 1 for any."""
    document = _read(file)
    report = store.project(document.project).diff_catalog(document, prune=prune)
    _print_report(report, as_json)
    if report.sessions and not as_json:
        say(f"{count(report.sessions, 'live session')} would lose removed mocks and scenarios.")
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
    if not document.environments:
        raise NotFoundError(f"Project {project!r} has registered no environment; catalog apply registers them.")
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


def _confirm(plan: CatalogReport) -> None:
    """Show what live sessions would lose, and ask. A script can't answer, so it needs --yes."""
    if not plan.sessions:
        return
    print_table(_HEADER, _rows(plan), err=True)
    losing = f"{count(plan.sessions, 'live session')} would lose removed mocks and scenarios"
    if not sys.stdin or not sys.stdin.isatty():
        raise InvalidInputError(f"{losing}; nothing was changed. To apply it, give --yes.")
    typer.confirm(f"{losing}. Apply?", abort=True, err=True)


_HEADER = ("ENVIRONMENT", "CHANGE", "WHAT", "ID")


def _rows(report: CatalogReport) -> list[tuple[str, str, str, str]]:
    rows = []
    for entry in report.environments:
        rows.append((entry.environment, entry.change, " ", " "))
        for name, ids in msgspec.structs.asdict(entry.diff).items():
            kind, change = name.split("s_")
            rows += [(" ", " ", f"{_SIGNS[change]} {kind}", id_) for id_ in ids]
    return rows + [(name, "left alone", "not in the document", " ") for name in report.left_alone]


def _print_report(report: CatalogReport, as_json: bool) -> None:
    print_result(as_json, _report_document(report), _HEADER, _rows(report))
