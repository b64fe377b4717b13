"""What every benchmark shows beside its figures: the machine, the versions, a table, and a results file."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import redis

__all__ = ["RESULTS_FOLDER", "describe_machine", "percentile", "print_table", "write_results"]

#: Where results files go, one for each benchmark.
RESULTS_FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"

_PACKAGES = ("redis", "fakeredis", "msgspec", "starlette", "uvicorn", "uvloop", "httptools", "cashews", "hiredis")


def describe_machine(client: redis.Redis | None = None) -> dict[str, str]:
    """The machine and the versions; with a `client`, what Redis's INFO says of itself too."""
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
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


def write_results(name: str, facts: Mapping[str, str], results: object) -> Path:
    """Write ``build/bench/<name>.json`` for plots and documents; returns its path."""
    RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
    path = RESULTS_FOLDER / f"{name}.json"
    document = {"name": name, "machine": dict(facts), "results": results}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    return path


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the `values` do not exceed (nearest rank); `values` must be sorted."""
    return values[min(len(values) - 1, int(share * len(values)))]


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
