"""The ``sessionstore`` command. docs/cli.md says what each part does and which exit codes scripts can rely on."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line."""
    try:
        from .app import app
    except ModuleNotFoundError as exc:
        if exc.name != "typer":
            raise
        sys.exit("sessionstore: the command line needs typer; install sessionstore[cli].")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Labels and keys are Unicode. They must not break a command whose terminal or file has another encoding.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="sessionstore")
