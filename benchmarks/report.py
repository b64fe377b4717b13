"""Report a benchmark: the machine, the versions, a table, the bars, and a results file."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import redis
from msgspec import Struct

__all__ = [
    "RESULTS_FOLDER",
    "Bar",
    "Report",
    "arguments_parser",
    "conclude",
    "describe_machine",
    "median_ratio",
    "percentile",
    "print_table",
    "write_results",
]

#: Where results files go, one for each benchmark.
RESULTS_FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"

_PACKAGES = ("redis", "fakeredis", "msgspec", "starlette", "uvicorn", "uvloop", "h11", "cashews", "hiredis")


class Bar(Struct, frozen=True):
    """A value and its limit, an upper one unless `at_least`. Without a limit the value is only recorded."""

    what: str
    limit: float | None
    value: float
    at_least: bool = False
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        """Whether the value keeps to the limit; None without a limit."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.what}: {_figure(self.value)} {self.unit}, recorded"
        sign = "≥" if self.at_least else "≤"
        verdict = "✔" if self.met else "✘ missed"
        return f"{self.what} {sign} {self.limit:g} {self.unit}: {_figure(self.value)} {verdict}"


class Report(Struct):
    """The results of one benchmark.

    Attributes
    ----------
    title : str
        The heading.
    columns, rows : list
        The printed table.
    bars : list of Bar
        The values that are checked or recorded.
    figures : object
        The data of the plot.
    notes : list of str
        Remarks on the table.
    off_page : list of str
        The first cells of rows that are printed, and left out of the page.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    bars: list[Bar]
    figures: Any = None
    notes: list[str] = []
    off_page: list[str] = []


def arguments_parser(purpose: str | None, rounds: int) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument("--quick", action="store_true", help="a few tiny rounds, to show that it runs")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: build/bench; build/bench/quick")
    return parser


def conclude(name: str, facts: Mapping[str, str], report: Report, options: argparse.Namespace) -> int:
    """Print a report and write its results file; returns the exit code: 1 for a missed bar with ``--check``.

    The results of ``--quick`` mean nothing, so they go to their own folder.
    """
    folder = options.results or (RESULTS_FOLDER / "quick" if options.quick else RESULTS_FOLDER)
    print_table(report.title, facts, report.columns, report.rows)
    for note in report.notes:
        print(note)
    print()
    for bar in report.bars:
        print(bar)
    print(f"written to {write_results(name, facts, report, folder)}")
    return 1 if options.check and any(bar.met is False for bar in report.bars) else 0


def median_ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """The median of the ratios of single rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def describe_machine(client: redis.Redis | None = None) -> dict[str, str]:
    """The machine and the versions; with a `client`, also the server's version."""
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if client is not None:
        info: Any = client.info("server")
        facts["redis-server"] = f"{info['redis_version']} ({info['multiplexing_api']}, {info['arch_bits']} bit)"
    return facts


def print_table(title: str, facts: Mapping[str, str], columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print figures as a table: the first column to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print(f"\n{title}\n")
    for number, line in enumerate(lines):
        print(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )
        if number == 0:
            print("  ".join("-" * width for width in widths))
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))


def write_results(name: str, facts: Mapping[str, str], results: object, folder: Path = RESULTS_FOLDER) -> Path:
    """Write ``<name>.json`` for plots and documents; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    document = {"name": name, "machine": dict(facts), "results": results}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    return path


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the `values` do not exceed (nearest rank); `values` must be sorted."""
    return values[min(len(values) - 1, int(share * len(values)))]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
