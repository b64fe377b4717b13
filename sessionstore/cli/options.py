"""Options that several commands share, and decorators that open the store or the environment they name."""

from __future__ import annotations

import functools
import getpass
import inspect
import os
import socket
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Concatenate, NamedTuple, TypeVar

import redis
import typer

from ..errors import InvalidInputError, InvalidQueryError
from ..options import DEFAULT_DEADLINE_S, DEFAULT_LEASE_S, DEFAULT_TTL_S, LEASE_RANGE_S, TTL_RANGE_S
from ..protocol.keyspace import DEFAULT_PREFIX
from ..session import MAX_ACTOR_LENGTH
from ..sync.environment import Environment
from ..sync.store import SessionStore
from ..transport.connect import client_options
from ..variables import parse_seconds, show_seconds
from .output import plain

Made = TypeVar("Made")
Result = TypeVar("Result")


def _if_match_of(text: str | None) -> int | str | None:
    """The library's form of --if-match."""
    if text is None or text == "*":
        return text
    # The HTTP API's ETag, which is quoted, works too.
    digits = text.strip('"')
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise InvalidQueryError('--if-match takes a revision, as get shows it, or "*".')
    return int(digits)


#: The bounds of the shared options that are times, in seconds.
_BOUNDS = {"default_ttl": TTL_RANGE_S, "lease": LEASE_RANGE_S}


def seconds_of(parameter: typer.CallbackParam, text: str | None) -> float | None:
    """The seconds of an option's time, such as 30m."""
    name = parameter.name or ""
    try:
        return None if text is None else parse_seconds(text, *_BOUNDS.get(name, ()))
    except InvalidInputError as exc:
        raise InvalidInputError(f"--{name.replace('_', '-')} {exc}") from None


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
RedisUrlOption = Annotated[
    str,
    typer.Option(
        envvar="SESSIONSTORE_REDIS_URL",
        metavar="URL",
        help="redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://; set the variable instead if the URL "
        "has a password.",
    ),
]
RedisPrefixOption = Annotated[
    str, typer.Option(envvar="SESSIONSTORE_PREFIX", metavar="TEXT", help="Prefix of every Redis key.")
]
DefaultTtlOption = Annotated[
    Any,
    typer.Option(
        envvar="SESSIONSTORE_TTL",
        metavar="TIME",
        callback=seconds_of,
        help="How long a session lives after its last use; same as the gateway's.",
    ),
]
LeaseOption = Annotated[
    Any,
    typer.Option(
        envvar="SESSIONSTORE_LEASE",
        metavar="TIME",
        callback=seconds_of,
        help="How long a view's lease lasts; same as the gateway's.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Return when Redis has the change, before every live proxy serves it.")
]
ViewsOption = Annotated[
    int, typer.Option(metavar="N", help="Exit with 8 if fewer live views have reported the change; it is made.")
]
ReplicasOption = Annotated[
    int | None,
    typer.Option(
        envvar="SESSIONSTORE_REPLICAS",
        metavar="N",
        help="Exit with 9 if fewer replicas of Redis have the change in time; it is made.",
    ),
]
IfMatchOption = Annotated[
    Any,
    typer.Option(
        metavar="REVISION",
        callback=_if_match_of,
        help='Only if the session is at this revision; "*": only if it exists.',
    ),
]
PrefixOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The sessions whose keys begin with this, byte by byte.")
]
SessionKeyArgument = Annotated[str, typer.Argument(metavar="SESSION_KEY", help="The session's key, such as ci-42.")]


def _given(make: Callable[..., Made]) -> Callable[[Callable[Concatenate[Made, ...], Result]], Callable[..., Result]]:
    """Decorate a function to take the parameters of `make` instead of its first, which `make` returns."""
    parameters = inspect.signature(make, eval_str=True).parameters

    def decorate(function: Callable[Concatenate[Made, ...], Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def run(**given: Any) -> Result:
            return function(make(**{name: given.pop(name) for name in parameters}), **given)

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        every = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *parameters.values())]
        # Typer reads both.
        run.__annotations__ = {each.name: each.annotation for each in every}
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        return run

    return decorate


def _open_store(
    context: typer.Context,
    redis_url: RedisUrlOption,
    redis_prefix: RedisPrefixOption = DEFAULT_PREFIX,
    default_ttl: DefaultTtlOption = show_seconds(DEFAULT_TTL_S),  # noqa: B008  a constant
    lease: LeaseOption = show_seconds(DEFAULT_LEASE_S),  # noqa: B008
) -> SessionStore:
    """Open the store that the options name. It is closed when the command returns."""
    store = SessionStore.from_url(
        redis_url, max_connections=4, prefix=redis_prefix, lease_s=lease, ttl_s=default_ttl, actor=_actor()
    )
    return context.with_resource(store)


def _actor() -> str:
    """Who runs the command, for the sessions that it sets."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        user = str(os.getuid())
    return plain(f"{user}@{socket.gethostname()}")[:MAX_ACTOR_LENGTH]


def redis_clients(store: SessionStore) -> Iterator[redis.Redis]:
    """A plain client of each of the store's primaries, for commands that the library does not have. None retries."""
    pool = store._runner.pool
    for address in store._runner.connections.link.primaries(DEFAULT_DEADLINE_S):
        options = {**pool.connection_kwargs, **client_options(DEFAULT_DEADLINE_S)}
        if address is not None:
            options["host"], options["port"] = address
        yield redis.Redis.from_pool(redis.ConnectionPool(connection_class=pool.connection_class, **options))


#: Pass the open store as first argument, and add the options that name it.
on_store = _given(_open_store)


def chosen_environment(
    store: SessionStore, project: ProjectOption, environment: EnvironmentOption = None
) -> Environment:
    """The named environment, or the only one that the project has registered."""
    if environment is None:
        names = store.project(project).environments()
        if len(names) != 1:
            known = f"it has {', '.join(names)}" if names else "none is registered"
            raise InvalidQueryError(f"Which environment of project {project!r}? Name it with --environment: {known}.")
        environment = names[0]
    return store.environment(project, environment)


#: Pass the environment as first argument, and add the options that name it.
on_environment = _given(on_store(chosen_environment))


class Write(NamedTuple):
    """Where a command writes, and what its calls wait for."""

    environment: Environment
    terms: dict[str, Any]


@on_environment
def _write(
    environment: Environment, no_wait: NoWaitOption = False, views: ViewsOption = 0, replicas: ReplicasOption = None
) -> Write:
    return Write(environment, {"wait": not no_wait, "views": views, "replicas": replicas})


#: Pass a `Write` as first argument, and add its options.
on_write = _given(_write)
