"""All commands. An error of the library becomes one line on standard error, and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from gateway.__main__ import main

from .. import __version__
from ..errors import (
    InvalidInputError,
    NotDurableError,
    NotEffectiveError,
    NotFoundError,
    OutcomeUnknownError,
    PreconditionFailedError,
    QuotaExceededError,
    SessionStoreError,
    StoreUnavailableError,
    TooFewViewsError,
)
from ..variables import unknown_variables
from . import catalog, keys, sessions, views, watch
from .output import say

#: The first class that matches an error gives its exit code; docs/cli.md has the same table.
_EXIT_CODES: tuple[tuple[type[SessionStoreError], int], ...] = (
    (NotFoundError, 1),
    (InvalidInputError, 2),
    (OutcomeUnknownError, 5),
    (NotEffectiveError, 5),
    (StoreUnavailableError, 3),
    (TooFewViewsError, 8),
    (NotDurableError, 9),
    (PreconditionFailedError, 4),
    (QuotaExceededError, 4),
    (SessionStoreError, 6),
)

#: The command succeeded, but its output could not be written.
_NOT_WRITTEN = 7

_EPILOG = (
    "Exit codes: 0 done; 1 not found, or catalogs differ; 2 usage or invalid input; 3 Redis unavailable, nothing "
    "changed; 4 precondition failed, or over a quota; 5 sent, but perhaps not in effect; 6 Redis holds foreign data; "
    "7 done, but the output could not be written; 8 done, but fewer views than --views reported it; "
    "9 done, but fewer replicas than --replicas have it."
)


def exit_code(error: SessionStoreError) -> int:
    """The exit code of an error, for scripts."""
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SessionStoreError as exc:
            say(f"sessionstore: {exc}")
            raise typer.Exit(exit_code(exc)) from exc
        except BrokenPipeError as exc:
            # The reader has closed the pipe, as `| head` does. Flushing the buffer at exit must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_NOT_WRITTEN) from exc
        except OSError as exc:
            say(f"sessionstore: The output could not be written: {exc.strerror or exc}.")
            raise typer.Exit(_NOT_WRITTEN) from exc


app = typer.Typer(
    cls=_Group,
    name="sessionstore",
    help="Mock state of test sessions in Redis: sessions, catalogs and API keys.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys.app, name="keys")
app.add_typer(catalog.app, name="catalog")
for command in (
    *(sessions.get, sessions.put, sessions.on, sessions.off, sessions.reset, sessions.delete),
    *(views.views, watch.watch),
):
    app.command()(command)
app.command("list")(sessions.list_sessions)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _refuse_misplaced(value: str | None) -> None:
    if value is not None:
        raise typer.BadParameter("Options follow the command, as in: sessionstore get ci-42 --redis-url URL")


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    misplaced: Annotated[
        str | None,
        typer.Option("--redis-url", "--project", "-p", "--environment", "-e", callback=_refuse_misplaced, hidden=True),
    ] = None,
) -> None:
    # The gateway says it itself, in its log.
    if context.invoked_subcommand != "serve":
        for sentence in unknown_variables(os.environ):
            say(sentence)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Run the gateway. All options are those of python -m gateway, --help too.",
)
def serve(ctx: typer.Context) -> NoReturn:
    """Run the gateway."""
    sys.exit(main(ctx.args, "sessionstore serve"))
