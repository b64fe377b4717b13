"""One run, from the seed to the report. ``python -m tests.faults.checker --help`` shows how to start many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .child import TTL_S
from .history import History, read_records
from .plan import KINDS, Kind, plan_rounds
from .trace import trace_of
from .validators import Violation, violations_of
from .world import World

__all__ = ["DEFAULT_LEASE_S", "Report", "check"]

DEFAULT_LEASE_S = 1.0

#: Violations that a report shows in full.
_SHOWN = 5


@dataclass(slots=True)
class Report:
    """The result of one run."""

    seed: int
    looks: int
    #: of these, the look-ups of fresh views, which had to show every returned write; and those refused as stale
    fresh: int
    refused: int
    writes: int
    #: of these, the writes that waited for the views
    effective: int
    faults: dict[str, int]
    #: for each round, seconds from its last fault until every view was fresh again
    healed_s: list[float]
    violations: list[Violation]
    trace: str = field(repr=False)

    def __str__(self) -> str:
        healed = ", ".join(f"{seconds:.1f}" for seconds in self.healed_s)
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"seed {self.seed}: {self.looks:,} look-ups ({self.fresh:,} fresh, {self.refused:,} refused as stale), "
            f"{self.writes:,} writes ({self.effective:,} effective on return), all in touch {healed} s after the "
            f"faults, {len(self.violations)} violations; faults: {faults}"
        )


def check(
    folder: Path, seed: int, rounds: int, *, kinds: Sequence[Kind] = KINDS, lease_s: float = DEFAULT_LEASE_S
) -> Report:
    """Do one run, and search its history for violations.

    Parameters
    ----------
    folder : Path
        An empty folder; the records stay there.
    seed : int
        Decides the faults and the choices of the processes.
    rounds : int
        The number of rounds. In each, faults happen for some seconds; then the run heals and compares everything.
    kinds : sequence of Kind
        The faults to draw from.
    lease_s : float
        The lease of all processes.
    """
    healed_s = []
    with World(folder, seed, lease_s) as world:
        for number, plan in enumerate(plan_rounds(seed, rounds, kinds)):
            world.resume()
            world.run_round(plan)
            healed_s.append(world.await_recovery(number))
        world.finish()
    history = History(read_records(folder), lease_s=lease_s, ttl_s=TTL_S)
    return _report(history, seed, healed_s)


def _report(history: History, seed: int, healed_s: list[float]) -> Report:
    violations = violations_of(history)
    faults: dict[str, int] = {}
    for fault in history.faults:
        faults[fault.kind] = faults.get(fault.kind, 0) + 1
    return Report(
        seed=seed,
        looks=sum(looks.count for looks in history.looks),
        fresh=sum(looks.count for looks in history.looks if looks.fresh),
        refused=sum(tally.refused for tally in history.tallies),
        writes=len(history.writes),
        effective=sum(write.outcome == "done" for write in history.writes),
        faults=faults,
        healed_s=healed_s,
        violations=violations,
        trace="\n".join(trace_of(history, violation) for violation in violations[:_SHOWN]),
    )
