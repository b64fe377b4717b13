"""Run all attacks on both stores: ``make hostile``."""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import random
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from . import catalogs
from .attacks import ATTACKS
from .world import embedded_world, redis_world

#: Failures of one attack that are shown, and characters of each.
_MOST_SHOWN, _MOST_CHARACTERS = 10, 3000


def main() -> int:
    """Attack; return the exit code."""
    names = [*(attack.name for attack in ATTACKS), "catalogs"]
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile",
        description="Send hostile input to a gateway on Redis and on the embedded store.",
        epilog=f"Attacks: {', '.join(names)}.",
    )
    parser.add_argument("--seed", type=int, default=1, help="decides the inputs (default 1)")
    parser.add_argument(
        "--attacks", default=",".join(names), metavar="NAMES", help="separated by commas (default: all)"
    )
    options = parser.parse_args()
    chosen = options.attacks.split(",")
    unknown = [name for name in chosen if name not in names]
    if unknown:
        parser.error(f"unknown attacks: {', '.join(unknown)}; known are {', '.join(names)}")
    logging.getLogger("sessionstore").setLevel(logging.CRITICAL)
    report = _Report(options.seed)
    for make_world in (redis_world, embedded_world):
        with make_world() as world:
            for attack in ATTACKS:
                if attack.name in chosen:
                    report.add(world.name, attack.name, attack.generate, functools.partial(attack.run, world))
    if "catalogs" in chosen:
        report.add("", "catalogs", catalogs.documents, catalogs.attack)
    print(f"In all: {report.inputs:,} inputs, {report.failures:,} failures.")
    return 1 if report.failures else 0


class _Report:
    """Runs attacks, and prints a line for each."""

    def __init__(self, seed: int) -> None:
        self.inputs = self.failures = 0
        self._seed = seed
        print(f"seed {seed}\n{'store':10}{'attack':16}{'inputs':>8}{'failures':>10}{'seconds':>9}")

    def add(
        self,
        store: str,
        name: str,
        generate: Callable[[random.Random], Sequence[Any]],
        run: Callable[[Sequence[Any]], Coroutine[Any, Any, list[str]]],
    ) -> None:
        """Run one with all its inputs."""
        started = time.monotonic()
        inputs = generate(random.Random(self._seed))
        failures = asyncio.run(run(inputs))
        self.inputs += len(inputs)
        self.failures += len(failures)
        took_s = time.monotonic() - started
        print(f"{store:10}{name:16}{len(inputs):8,}{len(failures):10,}{took_s:9.1f}", flush=True)
        for failure in failures[:_MOST_SHOWN]:
            print(f"  {failure:.{_MOST_CHARACTERS}}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
