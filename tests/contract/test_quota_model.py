"""A Hypothesis state machine compares the count of a project's sessions with the sessions, on a real Redis.

Stores with and without quotas write to two environments, in the test's time (test_model.py).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from sessionstore import CatalogDocument, QuotaExceededError, SessionNotFoundError, SessionStore, StoreUnavailableError
from sessionstore.protocol import calls as library_calls
from sessionstore.protocol.scripts import Script, compose

from ..support.redis_server import RedisServer
from .test_model import AHEAD_MS, CLOCK, STEP_MS, TTL_MS, load_clocked

__all__ = ["load_clocked"]

MAX_SESSIONS = 2
MAX_BYTES = 2500

PLACES = st.tuples(st.sampled_from(["staging", "live"]), st.sampled_from(["a", "b:c", "ä"]))
OVERRIDES = st.sampled_from(["ovr_a", "ovr_b", "ovr_" + "c" * 100])

_names = itertools.count()

Place = tuple[str, str]


class QuotaMachine(RuleBasedStateMachine):
    """The count is right, and decides."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.prefix = f"q{next(_names)}"
        self.base = f"{self.prefix}:{{checkout}}:"
        self.raw: Any = self.server.client(decode_responses=True)
        self.raw.set(CLOCK, int(time.time() * 1000) + AHEAD_MS)
        options: Any = {"prefix": self.prefix, "ttl_s": TTL_MS / 1000, "lease_s": 0.1}
        self.free = SessionStore.from_url(self.server.url, **options)
        self.bound = SessionStore.from_url(
            self.server.url, max_sessions=MAX_SESSIONS, max_project_bytes=MAX_BYTES, **options
        )

    def teardown(self) -> None:
        self.free.close()
        self.bound.close()
        self.raw.close()

    def now(self) -> int:
        return int(self.raw.get(CLOCK))

    def live(self) -> dict[Place, tuple[int, int]]:
        """The size and expiry of each live session, from its hash."""
        found = {}
        for name in self.raw.keys(f"{self.base}*:s:*"):
            environment, _, key = name.removeprefix(self.base).partition(":s:")
            fields = self.raw.hgetall(name)
            if int(fields["expiresAt"]) > self.now():
                texts = (key, fields.get("label", ""), fields.get("scenario", ""), fields.get("overrides", "[]"))
                size = 500 + sum(len(text.encode()) for text in texts)
                found[environment, key] = (size, int(fields["expiresAt"]))
        return found

    def write(self, place: Place, patch: dict[str, Any]) -> None:
        """Write with quotas, which must decide as the sessions themselves tell."""
        before = self.live()
        written = {"label": "", "overrides": ("",), **patch}
        try:
            self.bound.environment("checkout", place[0]).put(place[1], **patch)
        except QuotaExceededError:
            assert self.live() == before
            alike = sum(environment == place[0] for environment, _ in before)
            largest = 520 + len(written["label"] or "") + sum(len(each) + 3 for each in written["overrides"])
            full = sum(size for size, _ in before.values()) + largest > MAX_BYTES
            assert full or (place not in before and alike >= MAX_SESSIONS)
        else:
            after = self.live()
            grown = place not in before or after[place][0] > before[place][0]
            if place not in before:
                assert sum(environment == place[0] for environment, _ in after) <= MAX_SESSIONS
            if grown:
                assert sum(size for size, _ in after.values()) <= MAX_BYTES

    @rule(place=PLACES, label=st.none() | st.sampled_from(["x", "ü" * 100]), ttl=st.sampled_from([None, 60, 500]))
    def put(self, place: Place, label: str | None, ttl: int | None) -> None:
        self.write(place, {"label": label, "ttl_seconds": ttl})

    @rule(place=PLACES, overrides=st.lists(OVERRIDES, max_size=3))
    def put_overrides(self, place: Place, overrides: list[str]) -> None:
        self.write(place, {"overrides": overrides})

    @rule(place=PLACES, override=OVERRIDES)
    def write_without_quotas(self, place: Place, override: str) -> None:
        self.free.environment("checkout", place[0]).activate(place[1], override)

    @rule(place=PLACES, override=OVERRIDES, method=st.sampled_from(["deactivate", "reset", "delete"]))
    def shrink(self, place: Place, override: str, method: str) -> None:
        environment = self.free.environment("checkout", place[0])
        arguments = (override,) if method == "deactivate" else ()
        try:
            getattr(environment, method)(place[1], *arguments)
        except SessionNotFoundError:
            assert place not in self.live()

    @rule(place=PLACES, steps=st.integers(-3, 0))
    def touch(self, place: Place, steps: int) -> None:
        self.free.environment("checkout", place[0]).touch({place[1]: self.now() + steps * STEP_MS})

    @rule(mocks=st.lists(OVERRIDES, unique=True))
    def apply_catalog(self, mocks: list[str]) -> None:
        # Both environments stay usable, and the catalogs go at once, so that any id may be set again.
        offer = {"mocks": [{"id": mock, "name": mock} for mock in mocks]}
        document = {"project": "checkout", "environments": {"staging": offer, "live": offer}}
        self.free.project("checkout").apply_catalog(document)
        self.free.project("checkout").apply_catalog(CatalogDocument("checkout", {}), prune=True)

    @rule(steps=st.sampled_from([1, 5, 9, 11, 49, 99, 101]), collects=st.booleans())
    def time_passes(self, steps: int, collects: bool) -> None:
        now = self.raw.incrby(CLOCK, steps * STEP_MS)
        for name in self.raw.keys(f"{self.base}*:s:*") if collects else ():
            if 0 <= self.raw.pexpiretime(name) <= now:
                self.raw.delete(name)

    @rule(kind=st.sampled_from(["usage", "ledger"]))
    def lose_the_count(self, kind: str) -> None:
        self.raw.delete(f"{self.base}{kind}")

    @invariant()
    def the_count_is_right(self) -> None:
        usage = self.raw.hgetall(f"{self.base}usage")
        ledger = dict(self.raw.zrange(f"{self.base}ledger", 0, -1, withscores=True))
        if not usage or not ledger:
            return  # counted anew before the next write with quotas
        now = self.now()
        expected = {f"{size}:{place[0]}:{place[1]}": expiry for place, (size, expiry) in self.live().items()}
        assert {entry: score for entry, score in ledger.items() if score > now} == expected
        assert int(usage["bytes"]) == sum(int(entry.split(":")[0]) for entry in ledger)
        for environment in ("staging", "live"):
            counted = sum(entry.split(":")[1] == environment for entry in ledger)
            assert int(usage.get(f"sessions:{environment}", 0)) == counted


def run(server: RedisServer, **options: Any) -> None:
    run_state_machine_as_test(
        type("Machine", (QuotaMachine,), {"server": server}),
        settings=settings(
            deadline=None,
            database=None,
            derandomize=True,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_the_count_equals_the_sessions(shared_redis: RedisServer) -> None:
    run(shared_redis, max_examples=20)


#: Bugs to plant: the script, a piece of its text, and the text that replaces it.
BUGS = {
    "a deletion is not counted": ("delete", "if usage and session then", "if false then"),
    "a touch leaves the old expiry": ("touch", "local usage = #moved > 0 and", "local usage = false and"),
    "a smaller session counts as before": ("put", "if old and (old ~= new or not exists) and", "if false and"),
    "a catalog's changes are not counted": ("catalog_apply", "if usage then", "if false then"),
    "one session too many": ("put", "usage.sessions >= max_sessions", "usage.sessions > max_sessions"),
    "a count leaves sessions out": ("usage_add", "for i = 4, #KEYS do", "for i = 5, #KEYS do"),
    "a new environment is not counted": ("put", "if head.is_counted and", "if false and"),
    "an old environment is not counted": ("usage_add", "'counted', '1'", "'counted_', '1'"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_a_script_is_found(
    bug: str,
    shared_redis: RedisServer,
    load_clocked: Callable[[str], Script],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, text, planted = BUGS[bug]

    @cache
    def load_with_bug(wanted: str) -> Script:
        script = load_clocked(wanted)
        if wanted != name:
            return script
        assert text in script.text, "the bug has a place in the script"
        return compose(wanted, script.text.replace(text, planted))

    monkeypatch.setattr(library_calls, "load_script", load_with_bug)

    # Writes with quotas end in an error where each new count is unsound.
    with pytest.raises((AssertionError, StoreUnavailableError)):
        run(shared_redis, max_examples=200, phases=[Phase.generate])
