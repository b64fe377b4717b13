"""The faults of a run and their times. A seed decides them, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["CLUSTER_KINDS", "KINDS", "ROUND_S", "SENTINEL_KINDS", "Kind", "Planned", "plan_rounds"]

#: Faults of processes that need no relay of their own.
_WITHOUT_RELAY = ("view-stopped", "view-killed", "loop-stalled", "gateway-stopped", "gateway-killed")

#: The target of a fault. Faults of one server never overlap, and neither do those of one process.
Subject = Literal["server", "view", "asyncio view", "gateway"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    name: str
    subject: Subject
    #: the least and the most duration, in leases
    leases: tuple[float, float]


#: What can happen to one Redis, and to those who use it.
KINDS = (
    Kind("view-stopped", "view", (0.3, 2.5)),
    Kind("view-killed", "view", (0.1, 1.0)),
    Kind("view-link-hole", "view", (0.5, 3.0)),
    Kind("view-calls-hole", "view", (0.5, 3.0)),
    Kind("view-network-hole", "view", (0.4, 1.1)),
    Kind("view-slow", "view", (1.0, 3.0)),
    Kind("view-cut", "view", (0.0, 0.0)),
    Kind("loop-stalled", "asyncio view", (1.2, 2.5)),
    Kind("gateway-stopped", "gateway", (0.3, 2.0)),
    Kind("gateway-killed", "gateway", (0.1, 1.0)),
    Kind("redis-stopped", "server", (0.2, 2.0)),
    Kind("redis-restarted", "server", (0.1, 0.8)),
    Kind("redis-emptied", "server", (0.1, 0.8)),
    Kind("replica-promoted", "server", (0.3, 1.0)),
    Kind("failover", "server", (0.0, 0.0)),
    Kind("script-flush", "server", (0.0, 0.0)),
    Kind("flushall", "server", (0.0, 0.0)),
)

_PROCESS_KINDS = tuple(kind for kind in KINDS if kind.subject != "server")

#: What can happen to a cluster, and to those who use it.
CLUSTER_KINDS = (
    *_PROCESS_KINDS,
    Kind("slot-migrated", "server", (0.1, 0.6)),
    Kind("resharded", "server", (0.0, 0.0)),
    Kind("orderly-failover", "server", (0.0, 0.0)),
    Kind("primary-killed", "server", (0.1, 1.0)),
    Kind("lagging-replica-promoted", "server", (0.3, 1.0)),
    Kind("primary-frozen", "server", (0.0, 0.5)),
    Kind("primary-cut-off", "server", (0.0, 2.0)),
    Kind("node-added-and-removed", "server", (0.5, 1.0)),
    Kind("redis-stopped", "server", (0.2, 1.2)),
    Kind("redis-restarted", "server", (0.1, 0.5)),
    Kind("redis-emptied", "server", (0.1, 0.5)),
    Kind("script-flush", "server", (0.0, 0.0)),
    Kind("flushall", "server", (0.0, 0.0)),
)

#: What can happen under Sentinel. All processes reach a server by the same address, so no process is cut off alone.
SENTINEL_KINDS = (
    *(kind for kind in _PROCESS_KINDS if kind.name in _WITHOUT_RELAY),
    Kind("orderly-failover", "server", (0.0, 0.0)),
    Kind("primary-killed", "server", (0.1, 1.0)),
    Kind("primary-frozen", "server", (0.0, 1.0)),
    Kind("script-flush", "server", (0.0, 0.0)),
    Kind("flushall", "server", (0.0, 0.0)),
)

#: Seconds of one round in which faults begin. Afterwards the run heals their effects.
ROUND_S = 6.0

#: The number of faults in one round.
_SERVER_FAULTS, _OTHER_FAULTS = (2, 3), (4, 6)


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of a round."""

    #: seconds after the start of the round
    at_s: float
    kind: Kind
    #: the number of the target, modulo the number of targets
    index: int
    #: its duration
    leases: float
    #: the variant of its kind: the direction of a hole, or the delay of a link
    variant: int


def plan_rounds(seed: int, rounds: int, kinds: Sequence[Kind]) -> list[list[Planned]]:
    """Draw the rounds. With enough rounds, each kind occurs at least once."""
    rng = random.Random(seed)
    server = _Deck([kind for kind in kinds if kind.subject == "server"], rng)
    other = _Deck([kind for kind in kinds if kind.subject != "server"], rng)
    plan = []
    for _ in range(rounds):
        drawn = server.draw(rng.randint(*_SERVER_FAULTS)) + other.draw(rng.randint(*_OTHER_FAULTS))
        plan.append(
            sorted(
                (
                    Planned(
                        at_s=rng.uniform(0.0, ROUND_S),
                        kind=kind,
                        index=rng.randrange(1 << 16),
                        leases=rng.uniform(*kind.leases),
                        variant=rng.randrange(1 << 16),
                    )
                    for kind in drawn
                ),
                key=lambda planned: planned.at_s,
            )
        )
    return plan


class _Deck:
    """Kinds in random order; each occurs once before any occurs again."""

    def __init__(self, kinds: Sequence[Kind], rng: random.Random) -> None:
        self._kinds = list(kinds)
        self._rng = rng
        self._left: list[Kind] = []

    def draw(self, count: int) -> list[Kind]:
        drawn = []
        for _ in range(min(count, len(self._kinds))):
            if not self._left:
                self._left = self._rng.sample(self._kinds, len(self._kinds))
            drawn.append(self._left.pop())
        return drawn
