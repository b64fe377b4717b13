"""The attacks, and how one is run."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import authorisation, calls, corruption, messages, wire
from .world import World

__all__ = ["ATTACKS", "Attack"]


@dataclass(frozen=True)
class Attack:
    """A kind of input, and the oracle that judges what becomes of it."""

    name: str
    generate: Callable[[random.Random], Sequence[Any]]
    judge: Callable[[World, Sequence[Any]], Awaitable[list[str]]]
    #: inputs of a sample
    sample: int
    #: the gateway may log exceptions meanwhile
    breaks: bool = False

    async def run(self, world: World, inputs: Sequence[Any]) -> list[str]:
        """Attack; returns the failures."""
        before = world.tracebacks()
        failures = await self.judge(world, inputs)
        logged = world.tracebacks() - before
        if logged and not self.breaks:
            failures.append(f"the gateway logged {logged} exceptions")
        return failures


ATTACKS = (
    Attack("framing", wire.framing, wire.attack, 80),
    Attack("mutations", wire.mutations, wire.attack, 80),
    Attack("calls", calls.calls, calls.attack, 60),
    Attack("authorisation", authorisation.attempts, authorisation.attack, 80),
    Attack("corruption", corruption.states, corruption.attack, 12, breaks=True),
    Attack("messages", messages.forgeries, messages.attack, 24),
)
