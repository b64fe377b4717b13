"""Put results into a page of docs/: between the two markers of each benchmark, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from .report import Bar

__all__ = ["find_page", "update"]


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin, written by make bench -->", f"<!-- {name}: end -->"


def find_page(folder: Path, name: str) -> Path:
    """The page that describes a benchmark.

    Raises
    ------
    LookupError
        No page has its markers.
    """
    begin, end = _markers(name)
    for page in sorted(folder.glob("*.md")):
        if begin in page.read_text(encoding="utf-8"):
            return page
    raise LookupError(f"{folder} has no place for the benchmark {name!r}: add the lines {begin!r} and {end!r}.")


def update(page: Path, document: dict[str, Any], plot: Path) -> None:
    """Replace the page's section on one benchmark."""
    begin, end = _markers(document["name"])
    text = page.read_text(encoding="utf-8")
    place = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    section = "\n".join([begin, "", *_section(document, plot.relative_to(page.parent)), "", end])
    page.write_text(place.sub(lambda _: section, text), encoding="utf-8")


def _section(document: dict[str, Any], plot: Path) -> list[str]:
    results = document["results"]
    bars = msgspec.convert(results["bars"], list[Bar])
    columns: list[str] = results["columns"]
    lines = [
        f"![{results['title']}]({plot.as_posix()})",
        "",
        _row(columns),
        "|---|" + "---:|" * (len(columns) - 1),
        *(_row(row) for row in results["rows"] if row[0] not in results["off_page"]),
    ]
    held = [bar for bar in bars if bar.limit is not None]
    if held:
        lines += ["", f"{sum(bar.met is True for bar in held)} of {len(held)} bars are met."]
    if results["notes"]:
        lines += ["", *(f"- {note.strip()}" for note in results["notes"])]
    return [*lines, "", f"Measured on {document['machine']['date']}."]


def _row(cells: list[str]) -> str:
    return "|" + "|".join(cell.replace("|", "\\|") for cell in cells) + "|"
