"""One run, from the seed to the report. ``python -m tests.faults.checker --help`` shows how to start many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .child import TTL_S
from .history import Fault, History, of_project, read_records
from .plan import Kind, plan_rounds
from .servers import Servers, SingleServer
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
    folder: Path,
    seed: int,
    rounds: int,
    *,
    servers: Callable[[], Servers] = SingleServer,
    kinds: Sequence[Kind] | None = None,
    lease_s: float = DEFAULT_LEASE_S,
    views: int = 4,
    gateways: int = 2,
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
    servers : callable
        Makes the Redis.
    kinds : sequence of Kind, optional
        The faults to draw from; by default, all that can happen to that Redis.
    lease_s : float
        The lease of all processes.
    views, gateways : int
        How many processes there are. Every second view uses asyncio.
    """
    healed_s = []
    made = servers()
    with World(made, folder, seed, lease_s, views, gateways) as world:
        for number, plan in enumerate(plan_rounds(seed, rounds, made.kinds if kinds is None else kinds)):
            world.resume()
            world.run_round(plan)
            healed_s.append(world.await_recovery(number))
        world.finish()
    records = list(read_records(folder))
    histories = [History(of_project(records, project), lease_s=lease_s, ttl_s=TTL_S) for project in made.projects]
    faults = Counter(record.kind for record in records if isinstance(record, Fault))
    return _report(histories, seed, faults, healed_s)


def _report(histories: Sequence[History], seed: int, faults: dict[str, int], healed_s: list[float]) -> Report:
    found = [(history, violation) for history in histories for violation in violations_of(history)]
    all_looks = [looks for history in histories for looks in history.looks]
    all_writes = [write for history in histories for write in history.writes]
    return Report(
        seed=seed,
        looks=sum(looks.count for looks in all_looks),
        fresh=sum(looks.count for looks in all_looks if looks.fresh),
        refused=sum(tally.refused for history in histories for tally in history.tallies),
        writes=len(all_writes),
        effective=sum(write.outcome == "done" for write in all_writes),
        faults=faults,
        healed_s=healed_s,
        violations=[violation for _, violation in found],
        trace="\n".join(trace_of(history, violation) for history, violation in found[:_SHOWN]),
    )
