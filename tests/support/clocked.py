"""State machines of Hypothesis on a real Redis, in the test's time.

The scripts read the test's clock instead of Redis's. Each reading moves it by a millisecond, and a step of the machine
moves it by ten seconds. So the outcome depends on the steps alone, and Hypothesis can repeat a failure.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from sessionstore.protocol.scripts import Script, compose, load_script

from .redis_server import RedisServer

TTL_MS = 1_000_000
STEP_MS = 10_000
#: How far the test's clock is ahead of Redis's: far enough that Redis expires no hash by itself.
_AHEAD_MS = 7 * 24 * 3600 * 1000

_CLOCK = "model:clock"
_READ_REDIS_TIME = "local time = redis.call('TIME')"
_READ_CLOCK = f"""local clock = redis.call('INCR', '{_CLOCK}')
  local time = {{ math.floor(clock / 1000), clock % 1000 * 1000 }}"""

_prefixes = itertools.count()


@cache
def load_clocked(name: str) -> Script:
    """Load a script that reads the test's clock."""
    return compose(name, load_script(name).text.replace(_READ_REDIS_TIME, _READ_CLOCK))


assert load_clocked("put").text != load_script("put").text


def load_with_bug(name: str, text: str, planted: str) -> Callable[[str], Script]:
    """Make a function that loads scripts. In the script `name`, it replaces `text`."""
    script = load_clocked(name)
    assert text in script.text, "the bug has a place in the script"
    broken = compose(name, script.text.replace(text, planted))
    return lambda wanted: broken if wanted == name else load_clocked(wanted)


class ClockedMachine(RuleBasedStateMachine):
    """Time passes for the sessions of the project ``checkout``."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        prefix = f"clocked{next(_prefixes)}"
        self.base = f"{prefix}:{{checkout}}:"
        self.raw: Any = self.server.client(decode_responses=True)
        self.raw.set(_CLOCK, int(time.time() * 1000) + _AHEAD_MS)
        #: options of each store
        self.options: Any = {"prefix": prefix, "ttl_s": TTL_MS / 1000, "lease_s": 0.1}

    def teardown(self) -> None:
        self.raw.close()

    def now(self) -> int:
        return int(self.raw.get(_CLOCK))

    @rule(steps=st.sampled_from([1, 5, 9, 10, 11, 49, 89, 99, 100, 101]), collects=st.booleans())
    def time_passes(self, steps: int, collects: bool) -> None:
        now = self.raw.incrby(_CLOCK, steps * STEP_MS)
        # Redis may keep expired data for any time.
        for name in self.raw.keys(f"{self.base}*:s:*") if collects else ():
            if 0 <= self.raw.pexpiretime(name) <= now:
                self.raw.delete(name)


def run_machine(machine: type[ClockedMachine], step_count: int, **options: Any) -> None:
    """Run a machine; a failure is the same each time."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            deadline=None,
            database=None,
            derandomize=True,
            stateful_step_count=step_count,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )
