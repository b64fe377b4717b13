"""Run the checker repeatedly, each time with another seed: ``make soak``."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from .cluster import ClusterServers
from .run import DEFAULT_LEASE_S, check
from .sentinel import SentinelServers
from .servers import SingleServer

_SERVERS: dict[str, type[SingleServer | ClusterServers | SentinelServers]] = {
    "single": SingleServer,
    "cluster": ClusterServers,
    "sentinel": SentinelServers,
}


def main() -> int:
    """Check until the time is over or a run finds a violation; return the exit code."""
    faults = "\n".join(
        f"  {name}: {', '.join(kind.name for kind in servers.kinds)}" for name, servers in _SERVERS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.checker",
        description="Run under faults, and search the histories for violations of the guarantee.",
        epilog=f"faults:\n{faults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--servers", choices=_SERVERS, default="single", help="the Redis (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of the first run; each further run takes the next (default 1)"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after this time (default 60)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of one run (default 12)")
    parser.add_argument("--lease", type=float, default=DEFAULT_LEASE_S, help="seconds (default %(default)g)")
    parser.add_argument(
        "--faults",
        metavar="NAMES",
        help="the kinds to draw from, separated by commas (default: all)",
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for the histories (default: keep only the history of a failed run)"
    )
    options = parser.parse_args()
    servers = _SERVERS[options.servers]
    names = [kind.name for kind in servers.kinds]
    chosen = names if options.faults is None else options.faults.split(",")
    unknown = [name for name in chosen if name not in names]
    if unknown:
        parser.error(f"unknown faults: {', '.join(unknown)}; known are {', '.join(names)}")
    kinds = [kind for kind in servers.kinds if kind.name in chosen]
    started = time.monotonic()
    looks = writes = 0
    seed = options.seed
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"checker-{seed}-", dir=options.keep))
        try:
            report = check(folder, seed, options.rounds, servers=servers, kinds=kinds, lease_s=options.lease)
        except (AssertionError, OSError, subprocess.SubprocessError):
            traceback.print_exc()
            print(f"seed {seed}: the run did not finish, so nothing was checked. The records are in {folder}.")
            return 1
        looks += report.looks
        writes += report.writes
        print(report, flush=True)
        if report.violations:
            print(f"\n{report.trace}\nThe history is in {folder}.")
            return 1
        if options.keep is None:
            shutil.rmtree(folder)
        if time.monotonic() - started > 60 * options.minutes:
            print(f"In all: {looks:,} look-ups and {writes:,} writes, no violation.")
            return 0
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
