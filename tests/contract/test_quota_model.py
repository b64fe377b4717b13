"""A Hypothesis state machine compares the count of a project's sessions with the sessions, on a real Redis.

Stores with and without quotas write to two environments, in the test's time.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, strategies as st
from hypothesis.stateful import invariant, rule

from sessionstore import CatalogDocument, QuotaExceededError, SessionNotFoundError, SessionStore, StoreUnavailableError
from sessionstore.protocol import calls as library_calls

from ..support.clocked import STEP_MS, ClockedMachine, load_clocked, load_with_bug, run_machine
from ..support.redis_server import RedisServer

MAX_SESSIONS = 2
MAX_BYTES = 2500

KEYS = ["a", "b:c", "ä"]
ENVIRONMENTS = st.sampled_from(["staging", "live"])
PLACES = st.tuples(ENVIRONMENTS, st.sampled_from(KEYS))
OVERRIDES = st.sampled_from(["ovr_a", "ovr_b", "ovr_" + "c" * 100])

Place = tuple[str, str]


class QuotaMachine(ClockedMachine):
    """The count is right, and decides."""

    def __init__(self) -> None:
        super().__init__()
        self.free = SessionStore.from_url(self.server.url, **self.options)
        self.bound = SessionStore.from_url(
            self.server.url, max_sessions=MAX_SESSIONS, max_project_bytes=MAX_BYTES, **self.options
        )

    def teardown(self) -> None:
        self.free.close()
        self.bound.close()
        super().teardown()

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

    @rule(environment=ENVIRONMENTS, steps=st.integers(-3, 0))
    def touch(self, environment: str, steps: int) -> None:
        seen = self.now() + steps * STEP_MS
        self.free.environment("checkout", environment).touch(dict.fromkeys(KEYS, seen))

    @rule(mocks=st.lists(OVERRIDES, unique=True))
    def apply_catalog(self, mocks: list[str]) -> None:
        # Both environments stay usable, and the catalogs go at once, so that any id may be set again.
        offer = {"mocks": [{"id": mock, "name": mock} for mock in mocks]}
        document = {"project": "checkout", "environments": {"staging": offer, "live": offer}}
        self.free.project("checkout").apply_catalog(document)
        self.free.project("checkout").apply_catalog(CatalogDocument("checkout", {}), prune=True)

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


@pytest.fixture(autouse=True)
def in_the_tests_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_calls, "load_script", load_clocked)


def run(server: RedisServer, **options: Any) -> None:
    run_machine(type("Machine", (QuotaMachine,), {"server": server}), 30, **options)


def test_the_count_equals_the_sessions(shared_redis: RedisServer) -> None:
    run(shared_redis, max_examples=20)


#: Bugs to plant: the script, a piece of its text, and the text that replaces it.
BUGS = {
    "a deletion is not counted": ("delete", "if usage and session then", "if false then"),
    "a touch leaves the old expiry": ("touch", "local usage = #moved > 0 and", "local usage = false and"),
    "a smaller session counts as before": ("put", "if old and (old ~= new or not exists) and", "if false and"),
    "a catalog's changes are not counted": ("catalog_apply", "if usage then", "if false then"),
    "one session too many": ("put", "usage.sessions >= (tonumber", "usage.sessions > (tonumber"),
    "a count leaves sessions out": ("usage_add", "for i = 4, #KEYS do", "for i = 5, #KEYS do"),
    "a new environment is not counted": ("put", "if head.is_counted and", "if false and"),
    "an old environment is not counted": ("usage_add", "'counted', '1'", "'counted_', '1'"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_a_script_is_found(bug: str, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_calls, "load_script", load_with_bug(*BUGS[bug]))

    # Writes with quotas end in an error where each new count is unsound.
    with pytest.raises((AssertionError, StoreUnavailableError)):
        run(shared_redis, max_examples=200, phases=[Phase.generate])
