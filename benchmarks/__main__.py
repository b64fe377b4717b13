"""Run benchmarks, each in a process of its own; draw the plots and update the pages of docs/."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import msgspec

from . import report
from .document import find_page, update
from .plots import PLOTS, draw

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other options go to every benchmark that runs: --rounds N, --quick, --check."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(PLOTS)}")
    parser.add_argument("--draw", action="store_true", help="only draw existing results")
    options, passed_on = parser.parse_known_args()
    names: list[str] = options.names or list(PLOTS)
    unknown = [name for name in names if name not in PLOTS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(PLOTS)}")
    failed = []
    for name in names:
        if not options.draw:
            print(f"\n== {name} ==", flush=True)
            command = [sys.executable, "-m", f"benchmarks.bench_{name}", *passed_on]
            if subprocess.run(command, check=False).returncode != 0:
                failed.append(name)
                continue
        if "--quick" not in passed_on:
            publish(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def publish(name: str) -> None:
    """Draw one benchmark's results, and write them into the document."""
    document = msgspec.json.decode((report.RESULTS_FOLDER / f"{name}.json").read_bytes())
    page = find_page(DOCS, name)
    plot = draw(document, DOCS / "benchmarks")
    update(page, document, plot)
    print(f"drawn in {plot}, described in {page}")


if __name__ == "__main__":
    sys.exit(main())
