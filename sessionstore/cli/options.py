"""Options that several commands share, and the store that they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError, InvalidQueryError
from ..options import DEFAULT_LEASE_S, DEFAULT_TTL_S, LEASE_RANGE_S, TTL_RANGE_S, StoreOptions, check_seconds
from ..protocol.keyspace import DEFAULT_PREFIX
from ..sync.environment import Environment
from ..sync.store import SessionStore

RedisUrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="SESSIONSTORE_REDIS_URL",
        metavar="URL",
        help="redis://, rediss:// or unix://; better given as the variable where it holds a password.",
    ),
]
PrefixOption = Annotated[
    str,
    typer.Option(envvar="SESSIONSTORE_PREFIX", metavar="TEXT", help="In front of every key in Redis."),
]
ProjectOption = Annotated[
    str, typer.Option("--project", "-p", envvar="SESSIONSTORE_PROJECT", metavar="SLUG", help="The project.")
]
EnvironmentOption = Annotated[
    str | None,
    typer.Option(
        "--environment",
        "-e",
        envvar="SESSIONSTORE_ENVIRONMENT",
        metavar="SLUG",
        help="The environment; not needed where the project has registered exactly one.",
    ),
]
TtlOption = Annotated[
    float,
    typer.Option(
        envvar="SESSIONSTORE_TTL", metavar="SECONDS", help="How long the session lives after it was last seen."
    ),
]
LeaseOption = Annotated[
    float,
    typer.Option(envvar="SESSIONSTORE_LEASE", metavar="SECONDS", help="How long a lease lasts; as the gateway's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Return when Redis has it, not when every live proxy serves it.")
]
IfMatchOption = Annotated[
    str | None,
    typer.Option(metavar="REVISION", help='Only if the session is at this revision; "*": only if it exists.'),
]
SessionKeyArgument = Annotated[str, typer.Argument(metavar="SESSION_KEY", help="What names the session, as ci-42.")]


@contextmanager
def opened(
    redis_url: str | None,
    prefix: str = DEFAULT_PREFIX,
    *,
    lease_s: float = DEFAULT_LEASE_S,
    ttl_s: float = DEFAULT_TTL_S,
) -> Iterator[SessionStore]:
    """Open the store that the options name, for one command."""
    if not redis_url:
        raise InvalidInputError("No Redis is named; give --redis-url or set SESSIONSTORE_REDIS_URL.")
    check_seconds("--ttl", ttl_s, *TTL_RANGE_S)
    check_seconds("--lease", lease_s, *LEASE_RANGE_S)
    options: StoreOptions = {"prefix": prefix, "lease_s": lease_s, "ttl_s": ttl_s}
    with SessionStore.from_url(redis_url, max_connections=4, **options) as store:
        yield store


def chosen_environment(store: SessionStore, project: str, environment: str | None) -> Environment:
    """The environment that is named, or the only one that the project has registered."""
    if environment is None:
        names = store.project(project).environments()
        if len(names) != 1:
            known = f"it has {', '.join(names)}" if names else "none is registered"
            raise InvalidQueryError(f"Which environment of project {project!r}? Name it with --environment: {known}.")
        environment = names[0]
    return store.environment(project, environment)


def if_match_of(text: str | None) -> Any:
    """What --if-match means to the library."""
    if text is None or text == "*":
        return text
    # As the HTTP API's ETag: quoted or not.
    digits = text.strip('"')
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise InvalidQueryError('--if-match takes a revision, as get shows it, or "*".')
    return int(digits)
