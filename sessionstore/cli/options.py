"""Options that several commands share, and decorators that open the store or the environment they name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Concatenate, TypeVar, get_type_hints

import typer

from ..errors import InvalidInputError, InvalidQueryError
from ..options import DEFAULT_LEASE_S, DEFAULT_TTL_S, LEASE_RANGE_S, TTL_RANGE_S, check_seconds
from ..protocol.keyspace import DEFAULT_PREFIX
from ..sync.environment import Environment
from ..sync.store import SessionStore

T = TypeVar("T")

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
        help="The environment; optional if the project has registered exactly one.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Return as soon as Redis has the change, before every live proxy serves it.")
]
IfMatchOption = Annotated[
    str | None,
    typer.Option(metavar="REVISION", help='Only if the session is at this revision; "*": only if it exists.'),
]
SessionKeyArgument = Annotated[str, typer.Argument(metavar="SESSION_KEY", help="The session's key, such as ci-42.")]

#: The options that the decorators add: the type and default of each.
_SHARED: dict[str, tuple[Any, Any]] = {
    "project": (ProjectOption, inspect.Parameter.empty),
    "environment": (EnvironmentOption, None),
    "ttl": (
        Annotated[
            float,
            typer.Option(
                envvar="SESSIONSTORE_TTL", metavar="SECONDS", help="How long the session lives after its last use."
            ),
        ],
        DEFAULT_TTL_S,
    ),
    "lease": (
        Annotated[
            float,
            typer.Option(
                envvar="SESSIONSTORE_LEASE", metavar="SECONDS", help="How long a lease lasts; same as the gateway's."
            ),
        ],
        DEFAULT_LEASE_S,
    ),
    "redis_url": (
        Annotated[
            str | None,
            typer.Option(
                envvar="SESSIONSTORE_REDIS_URL",
                metavar="URL",
                help="redis://, rediss:// or unix://; set the variable instead if the URL has a password.",
            ),
        ],
        None,
    ),
    "prefix": (
        Annotated[str, typer.Option(envvar="SESSIONSTORE_PREFIX", metavar="TEXT", help="Prefix of every Redis key.")],
        DEFAULT_PREFIX,
    ),
}


@contextmanager
def opened(
    redis_url: str | None, prefix: str, ttl: float = DEFAULT_TTL_S, lease: float = DEFAULT_LEASE_S
) -> Iterator[SessionStore]:
    """Open the store that the options name, for one command."""
    if not redis_url:
        raise InvalidInputError("No Redis is named; give --redis-url or set SESSIONSTORE_REDIS_URL.")
    check_seconds("--ttl", ttl, *TTL_RANGE_S)
    check_seconds("--lease", lease, *LEASE_RANGE_S)
    with SessionStore.from_url(redis_url, max_connections=4, prefix=prefix, lease_s=lease, ttl_s=ttl) as store:
        yield store


def chosen_environment(store: SessionStore, project: str, environment: str | None) -> Environment:
    """The named environment, or the only one that the project has registered."""
    if environment is None:
        names = store.project(project).environments()
        if len(names) != 1:
            known = f"it has {', '.join(names)}" if names else "none is registered"
            raise InvalidQueryError(f"Which environment of project {project!r}? Name it with --environment: {known}.")
        environment = names[0]
    return store.environment(project, environment)


@contextmanager
def _opened_environment(project: str, environment: str | None, **options: Any) -> Iterator[Environment]:
    with opened(**options) as store:
        yield chosen_environment(store, project, environment)


def on_store(*more: str) -> Callable[[Callable[Concatenate[SessionStore, ...], None]], Callable[..., None]]:
    """Pass the open store as first argument; add the options that name it, and `more`: ``ttl``, ``lease``."""
    return _adding((*more, "redis_url", "prefix"), opened)


def on_environment(*more: str) -> Callable[[Callable[Concatenate[Environment, ...], None]], Callable[..., None]]:
    """Pass the environment as first argument; add the options that name it, and `more`: ``ttl``, ``lease``."""
    return _adding(("project", "environment", *more, "redis_url", "prefix"), _opened_environment)


def _adding(
    names: tuple[str, ...], enter: Callable[..., AbstractContextManager[T]]
) -> Callable[[Callable[Concatenate[T, ...], None]], Callable[..., None]]:
    """Replace a command's first parameter by the options `names`, from which `enter` makes its argument."""

    def decorate(command: Callable[Concatenate[T, ...], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            with enter(**{name: given.pop(name) for name in names}) as target:
                command(target, **given)

        hints = get_type_hints(command, include_extras=True)
        _, *own = inspect.signature(command).parameters.values()
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [parameter.replace(kind=keyword, annotation=hints[parameter.name]) for parameter in own]
        for name in names:
            annotation, default = _SHARED[name]
            parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
        # Typer reads both.
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def if_match_of(text: str | None) -> Any:
    """What --if-match means to the library."""
    if text is None or text == "*":
        return text
    # Accept the HTTP API's ETag too, which is quoted.
    digits = text.strip('"')
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise InvalidQueryError('--if-match takes a revision, as get shows it, or "*".')
    return int(digits)
