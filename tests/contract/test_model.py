"""A Hypothesis state machine drives a store against a plain Python model, on a real Redis, in the test's time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, strategies as st
from hypothesis.stateful import invariant, rule

from sessionstore import AsyncSessionStore, PreconditionFailedError, Session, SessionNotFoundError, SessionStore
from sessionstore.protocol import calls as library_calls

from ..support.adapter import Driver
from ..support.clocked import STEP_MS, TTL_MS, ClockedMachine, load_clocked, load_with_bug, run_machine
from ..support.redis_server import RedisServer

KEYS = st.sampled_from(["a", "b", "ä/{}"])
OVERRIDES = st.sampled_from(["ovr_a", "ovr_b", "ovr_ab", "ovr_c"])
PATCHES = st.fixed_dictionaries(
    {},
    optional={
        "label": st.none() | st.sampled_from(["", "x", 'y"\\\n']),
        "scenario": st.none() | st.sampled_from(["scn_a", "scn_b"]),
        "overrides": st.lists(OVERRIDES, max_size=5),
        "global_delay_ms": st.none() | st.sampled_from([0, 1, 120_000]),
        "global_delay_max_ms": st.none() | st.sampled_from([0, 2, 120_000]),
    },
)


@dataclass
class Model:
    """One environment, as the contract describes it."""

    head: int = 0
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: the revision that set each session or moved its expiry; a write that changes nothing waits for it
    awaited: dict[str, int] = field(default_factory=dict)

    def live(self, key: str, now: int) -> dict[str, Any] | None:
        session = self.sessions.get(key)
        return session if session is not None and session["expires_at"] > now else None

    def blank(self, now: int) -> dict[str, Any]:
        return {
            "label": None,
            "scenario": None,
            "overrides": (),
            "global_delay_ms": 0,
            "global_delay_max_ms": 0,
            "created_at": now,
            "last_seen_at": now,
            "expires_at": 0,
            "revision": 0,
        }

    def write(self, key: str, patch: dict[str, Any], now: int) -> int:
        """Set properties; returns the revision that the caller waits for."""
        stored = self.live(key, now)
        session = dict(stored) if stored is not None else self.blank(now)
        session.update(patch)
        changed = stored is None or session != stored
        self.see(session, now)
        if changed:
            self.head += 1
            session["revision"] = self.awaited[key] = self.head
            session["expires_at"] = max(session["expires_at"], now + TTL_MS)
        elif stored is not None and session["expires_at"] != stored["expires_at"]:
            self.head += 1
            self.awaited[key] = self.head
        self.sessions[key] = session
        return self.awaited[key]

    def see(self, session: dict[str, Any], seen: int) -> bool:
        session["last_seen_at"] = max(session["last_seen_at"], seen)
        target = session["last_seen_at"] + TTL_MS
        if target - session["expires_at"] > TTL_MS // 10:
            session["expires_at"] = target
            return True
        return False


class StoreMachine(ClockedMachine):
    """The store does what the model does."""

    driver: Driver

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.runner = asyncio.Runner()
        self.store: Any = (SessionStore if self.driver == "sync" else AsyncSessionStore).from_url(
            self.server.url, **self.options
        )
        self.staging: Any = self.store.environment("checkout", "staging")

    def teardown(self) -> None:
        if self.driver == "sync":
            self.store.close()
        else:
            self.runner.run(self.store.aclose())
        self.runner.close()
        super().teardown()

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.staging, name)
        if self.driver == "sync":
            return method(*args, **kwargs)

        async def run() -> Any:
            return await method(*args, **kwargs)

        return self.runner.run(run())

    def session(self, key: str) -> Session:
        """The model's session as the store would return it."""
        return Session(project="checkout", environment="staging", session_key=key, **self.model.sessions[key])

    def written(self, key: str, patch: dict[str, Any], write: Callable[[], Session]) -> None:
        """Run a write that is expected to succeed, and compare."""
        before = self.now()
        session = write()
        assert before <= session.last_seen_at <= self.now()
        revision = self.model.write(key, patch, session.last_seen_at)
        assert session == self.session(key)
        assert session.effect is not None
        assert session.effect.revision == revision

    @rule(key=KEYS, patch=PATCHES, condition=st.sampled_from(["", "", "", "*", "match", "stale", "create"]))
    def put(self, key: str, patch: dict[str, Any], condition: str) -> None:
        stored = self.model.live(key, self.now())
        revision = stored["revision"] if stored is not None else 1
        choices: dict[str, dict[str, Any]] = {
            "*": {"if_match": "*"},
            "match": {"if_match": [revision, 10**9]},
            "stale": {"if_match": revision + 1},
            "create": {"if_none_match": "*"},
        }
        conditions = choices.get(condition, {})
        fails = {"*": stored is None, "match": stored is None, "stale": True, "create": stored is not None}
        if fails.get(condition, False):
            with pytest.raises(PreconditionFailedError):
                self.call("put", key, **patch, **conditions)
            return
        cleared: dict[str, Any] = {
            name: (0 if name.startswith("global") else None) if value is None else value
            for name, value in patch.items()
        }
        if "overrides" in cleared:
            cleared["overrides"] = tuple(dict.fromkeys(cleared["overrides"]))
        self.written(key, cleared, lambda: self.call("put", key, **patch, **conditions))

    @rule(key=KEYS)
    def put_nothing(self, key: str) -> None:
        self.written(key, {}, lambda: self.call("put", key))

    @rule(key=KEYS, override=OVERRIDES)
    def activate(self, key: str, override: str) -> None:
        stored = self.model.live(key, self.now())
        overrides = stored["overrides"] if stored is not None else ()
        wanted = overrides if override in overrides else (*overrides, override)
        self.written(key, {"overrides": wanted}, lambda: self.call("activate", key, override))

    @rule(key=KEYS, override=OVERRIDES)
    def deactivate(self, key: str, override: str) -> None:
        stored = self.model.live(key, self.now())
        if stored is None:
            with pytest.raises(SessionNotFoundError):
                self.call("deactivate", key, override)
            return
        rest = tuple(other for other in stored["overrides"] if other != override)
        self.written(key, {"overrides": rest}, lambda: self.call("deactivate", key, override))

    @rule(key=KEYS)
    def reset(self, key: str) -> None:
        if self.model.live(key, self.now()) is None:
            with pytest.raises(SessionNotFoundError):
                self.call("reset", key)
            return
        kept = ("created_at", "last_seen_at", "expires_at", "revision")
        patch = {name: value for name, value in self.model.blank(0).items() if name not in kept}
        self.written(key, patch, lambda: self.call("reset", key))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        existed = self.model.live(key, self.now()) is not None

        deletion = self.call("delete", key)

        assert bool(deletion) is existed
        self.model.sessions.pop(key, None)
        self.model.head += existed
        assert deletion.effect.revision == self.model.head

    @rule(seen=st.dictionaries(KEYS, st.integers(-30, 3), max_size=5))
    def touch(self, seen: dict[str, int]) -> None:
        before = self.now()
        live = [key for key in seen if self.model.live(key, before) is not None]

        touched = self.call("touch", {key: before + steps * STEP_MS for key, steps in seen.items()})

        assert touched == len(live)
        after = self.now()
        moved: list[str] = []
        for key in live:
            session = self.model.sessions[key]
            at = before + seen[key] * STEP_MS
            if seen[key] > 0:
                # The session is now seen at a time that only the store knows to the millisecond.
                at = self.call("get", key).last_seen_at
                assert before <= at <= after
            if self.model.see(session, at):
                moved.append(key)
        self.model.head += bool(moved)
        self.model.awaited.update(dict.fromkeys(moved, self.model.head))

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        live = self.model.live(key, self.now())
        assert self.call("get", key) == (None if live is None else self.session(key))

    @rule(limit=st.integers(1, 6))
    def list_all(self, limit: int) -> None:
        now = self.now()
        expected = sorted(
            (key for key in self.model.sessions if self.model.live(key, now) is not None),
            key=lambda key: (self.model.sessions[key]["last_seen_at"], key.encode()),
            reverse=True,
        )
        listed: list[Session] = []
        cursor = None
        while True:
            page = self.call("list", limit, cursor)
            listed += page.sessions
            cursor = page.next_cursor
            if cursor is None:
                break
        assert listed == [self.session(key) for key in expected]

    @invariant()
    def the_head_counts_the_changes(self) -> None:
        assert int(self.raw.hget(f"{self.base}staging:head", "rev") or 0) == self.model.head


@pytest.fixture(autouse=True)
def in_the_tests_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_calls, "load_script", load_clocked)


def run(driver: Driver, server: RedisServer, **options: Any) -> None:
    run_machine(type("Machine", (StoreMachine,), {"driver": driver, "server": server}), 40, **options)


def test_the_store_does_what_the_model_does(driver: Driver, shared_redis: RedisServer) -> None:
    run(driver, shared_redis, max_examples=60)


#: Bugs to plant: the script, a piece of its text, and the text that replaces it.
BUGS = {
    "a repeated put is a change": ("put", "local changed = not stored", "local changed = true"),
    "clearing is forgotten": ("put", "value = set and value or nil", "value = set and value or session[name]"),
    "an expired session is found": ("put", "if session.expiresAt <= now then", "if session.expiresAt == 0 then"),
    "an expiry moves too late": ("put", "> ttl / 10 then", "> ttl / 2 then"),
    "old fields stay": ("put", "redis.call('DEL', key)", ""),
    "the precondition is ignored": ("put", "return if_match == '*'", "return true or if_match == '*'"),
    "the index is not updated": ("put", "redis.call('ZADD', KEYS[2]", "redis.call('ZADD', KEYS[2], 'NX'"),
    "a touch goes back": ("touch", "math.max(session.lastSeenAt, seen)", "seen"),
    "part of an id matches it": (
        "activate",
        "string.find(session.overrides, quoted",
        "string.find(session.overrides, id",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_a_script_is_found(bug: str, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_calls, "load_script", load_with_bug(*BUGS[bug]))

    # A failed `pytest.raises` is no AssertionError.
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run("sync", shared_redis, max_examples=200, phases=[Phase.generate])
