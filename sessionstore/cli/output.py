"""Print tables for people and JSON for scripts, without control characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import typer
from rich.cells import cell_len

from ..protocol.messages import SessionState
from ..session import Effect, Session, format_time


def say(text: str) -> None:
    """Print a line for a person to standard error, apart from the command's output."""
    typer.echo(plain(text), err=True)


def print_json(value: Any) -> None:
    """Print one value as JSON on one line."""
    typer.echo(msgspec.json.encode(value).decode())


def print_result(as_json: bool, document: Any, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a command's result: the document as JSON for scripts, or the table for people."""
    if as_json:
        print_json(document)
    else:
        print_table(header, rows)


def effect_document(effect: Effect | None) -> dict[str, Any] | None:
    """A write's effect, for JSON."""
    if effect is None:
        return None
    document: dict[str, Any] = msgspec.to_builtins(effect)
    for name in ("commit", "durable", "effective"):
        document[f"{name}Ms"] = round(document.pop(f"{name}_s") * 1000, 3)
    return document


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, err: bool = False) -> None:
    """Print columns as wide as their cells, on standard output or error. None is shown as ``-``."""
    table = [list(header), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip(), err=err)


def count(number: int, noun: str) -> str:
    """A number with its noun: ``1 session``, ``2 sessions``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown(value: Any) -> str:
    """A value for a table."""
    if value is None or value in ((), ""):
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return plain(str(value))


def plain(text: str) -> str:
    """Text with control characters escaped. Any client can set labels and keys, and a terminal would obey them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def time_of(ms: int | None) -> str | None:
    """A time for a table: UTC, to the second."""
    return None if ms is None else format_time(ms)[:19].replace("T", " ") + "Z"


def delay_of(session: Session | SessionState) -> str:
    """A session's global delay, in ms: ``5``, or ``5-7`` for a random delay."""
    if session.global_delay_max_ms > session.global_delay_ms:
        return f"{session.global_delay_ms}-{session.global_delay_max_ms}"
    return str(session.global_delay_ms)
