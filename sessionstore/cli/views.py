"""``sessionstore views``."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
import typer

from ..errors import InvalidInputError, StoreUnavailableError
from ..session import LiveView
from ..sync.environment import Environment
from ..sync.store import SessionStore
from ..transport.errors import FOREIGN_ERRORS, describe_loss
from .options import EnvironmentOption, JsonOption, on_store, redis_clients
from .output import print_result

_HEADER = ("PROJECT", "ENVIRONMENT", "VIEW", "HOST", "PID", "VERSION", "REVISION", "LAG", "LEASE LEFT MS")


@on_store
def views(
    store: SessionStore,
    project: Annotated[
        str | None,
        typer.Option("--project", "-p", envvar="SESSIONSTORE_PROJECT", metavar="SLUG", help="The project of -e."),
    ] = None,
    environment: EnvironmentOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the live views: the proxies that a write waits for.

    Without -e, it lists all environments of all projects, also one whose name a proxy has misspelt.
    """
    if environment is None:
        places = _find_environments(store)
    elif project is None:
        raise InvalidInputError("Name the project of --environment with --project.")
    else:
        places = [store.environment(project, environment)]
    found = [(place, place.views()) for place in places]
    print_result(
        as_json,
        {"environments": [_document(place, live) for place, live in found]},
        _HEADER,
        (
            (place.project, place.name, *cells)
            for place, live in found
            for cells in (map(msgspec.structs.astuple, live) if live else [(None,) * 7])
        ),
    )


def _document(environment: Environment, views: tuple[LiveView, ...]) -> dict[str, Any]:
    return {"project": environment.project, "environment": environment.name, "views": views}


def _find_environments(store: SessionStore) -> list[Environment]:
    """The registered environments, and those with leases: a view may follow one that is registered nowhere."""
    slug = "[A-Za-z0-9._-]+"
    key = re.compile(rf"{re.escape(store.config.prefix)}:\{{({slug})}}:(?:({slug}):leases|environments)\Z")
    found: set[tuple[str, str]] = set()
    store.ping()  # fails with the sentence of every command if Redis is down
    try:
        for client in redis_clients(store):
            with client:
                for name in client.scan_iter(match=f"{store.config.prefix}:{{*", count=1000):
                    match = key.match(name if isinstance(name, str) else name.decode("utf-8", "replace"))
                    if match:
                        project, environment = match.groups()
                        names = [environment] if environment else store.project(project).environments()
                        found.update((project, each) for each in names)
    except FOREIGN_ERRORS as exc:
        raise StoreUnavailableError(f"The environments can't be listed: {describe_loss(exc)}.") from exc
    return [store.environment(*place) for place in sorted(found)]
