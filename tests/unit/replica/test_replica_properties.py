"""Whatever happens to messages, answers and Redis itself, a replica that believes it is current is right.

What is checked after each step is in replica_world.py. Each planted bug below shows that the checks find it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sessionstore.protocol.calls import Call
from sessionstore.protocol.messages import Change, SessionDeleted, SessionState
from sessionstore.protocol.replies import CatalogReply
from sessionstore.replica.chain import Chain
from sessionstore.replica.held_session import HeldSession
from sessionstore.replica.replica import Replica, State
from sessionstore.replica.snapshot import Snapshot

from ...support.replica_world import ACTIONS, World, random_steps

STEPS = st.lists(
    st.tuples(st.sampled_from(list(ACTIONS)), st.integers(0, 7), st.integers(0, 7)), min_size=40, max_size=120
)

#: Runs from seeds, and the steps of each; a planted bug may take more of them.
RUNS = 800
RUNS_FOR_A_BUG = 2_000
RUN_STEPS = 150


def run(world: World, steps: list[tuple[str, int, int]]) -> None:
    for step in steps:
        world.step(*step)
    world.heal()


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, page_size=st.integers(1, 3))
def test_any_interleaving_ends_with_the_state_of_redis(steps: list[tuple[str, int, int]], page_size: int) -> None:
    run(World(page_size=page_size), steps)


def test_long_runs_end_with_the_state_of_redis() -> None:
    live = 0
    for seed in range(RUNS):
        world = World(page_size=1 + seed % 3)
        for step in random_steps(seed, RUN_STEPS):
            world.step(*step)
            live += world.replica.state is State.LIVE
        world.heal()

    # Else nothing was tested: what is served is compared while the replica is LIVE.
    assert live > RUNS * RUN_STEPS / 10


# Planted bugs

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, Plant] = {}


def plant(function: Plant) -> Plant:
    PLANTS[function.__name__] = function
    return function


@plant
def ignores_prev(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chain, "continues", lambda chain, change: change.rev == chain.rev + 1)


@plant
def ignores_gaps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chain, "continues", lambda chain, change: change.rev > chain.rev)


@plant
def ignores_revisions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chain, "continues", lambda chain, change: change.prev == chain.id)


@plant
def keeps_no_tombstones(patch: pytest.MonkeyPatch) -> None:
    original = Snapshot.message

    def message(self: Snapshot, change: Change) -> None:
        original(self, change)
        if isinstance(change, SessionDeleted):
            self._deleted.discard(change.session_key)

    patch.setattr(Snapshot, "message", message)


@plant
def keeps_no_expiries(patch: pytest.MonkeyPatch) -> None:
    original = Snapshot._take_session

    def take_session(self: Snapshot, state: SessionState) -> None:
        self._moves.clear()
        original(self, state)

    patch.setattr(Snapshot, "_take_session", take_session)


@plant
def prefers_pages_to_messages(patch: pytest.MonkeyPatch) -> None:
    def take_session(self: Snapshot, state: SessionState) -> None:
        self.sessions[state.session_key] = self._hold(state)

    patch.setattr(Snapshot, "_take_session", take_session)


@plant
def does_not_wait_for_the_pages_positions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Snapshot, "_check_position", lambda self, chain, step, reply: True)


@plant
def does_not_compare_the_pages_ids(patch: pytest.MonkeyPatch) -> None:
    original = Snapshot._check_position, Snapshot.message, Chain.passed

    def without_ids(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            Chain.passed = lambda chain, rev, write_id, since=0: rev <= chain.rev  # type: ignore[method-assign,assignment]
            try:
                return method(*args)
            finally:
                Chain.passed = original[2]  # type: ignore[method-assign]

        return run

    patch.setattr(Snapshot, "_check_position", without_ids(original[0]))
    patch.setattr(Snapshot, "message", without_ids(original[1]))


@plant
def takes_a_catalog_of_any_revision(patch: pytest.MonkeyPatch) -> None:
    def take_catalog(self: Snapshot, reply: CatalogReply) -> None:
        self._catalog_read = True
        self.catalog = reply.catalog

    patch.setattr(Snapshot, "_take_catalog", take_catalog)


@plant
def takes_answers_of_an_earlier_sync(patch: pytest.MonkeyPatch) -> None:
    def answered(self: Snapshot, call: Call[Any], reply: Any) -> None:
        steps = [step for step in self._steps if step.call.script is call.script]
        original(self, steps[0].call if steps else call, reply)

    original = Snapshot.answered
    patch.setattr(Snapshot, "answered", answered)


@plant
def serves_pages_at_once(patch: pytest.MonkeyPatch) -> None:
    def take_session(self: Snapshot, state: SessionState) -> None:
        original(self, state)
        replica: Replica = self._hold.__self__  # type: ignore[attr-defined]
        session: HeldSession | None = self.sessions.get(state.session_key)
        if session is not None:
            replica._keep(session)
            replica._report(session.session_key, session)

    original = Snapshot._take_session
    patch.setattr(Snapshot, "_take_session", take_session)


@plant
def keeps_what_was_deleted_meanwhile(patch: pytest.MonkeyPatch) -> None:
    def serve(self: Replica, snapshot: Snapshot) -> None:
        if snapshot.complete:
            snapshot.sessions = {**self.sessions, **snapshot.sessions}
        original(self, snapshot)

    original = Replica._serve_if_complete
    patch.setattr(Replica, "_serve_if_complete", serve)


@plant
def tells_nobody_what_a_resync_found(patch: pytest.MonkeyPatch) -> None:
    def serve(self: Replica, snapshot: Snapshot) -> None:
        watchers, self.watchers = self.watchers, []
        original(self, snapshot)
        self.watchers = watchers

    original = Replica._serve_if_complete
    patch.setattr(Replica, "_serve_if_complete", serve)


@plant
def trusts_a_head_that_went_back(patch: pytest.MonkeyPatch) -> None:
    original = Chain.passed
    patch.setattr(Chain, "passed", lambda self, rev, head_id, since=0: original(self, rev, head_id))


@plant
def trusts_a_head_of_another_history(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chain, "passed", lambda self, rev, head_id, since=0: since <= rev <= self.rev)


@pytest.mark.parametrize("bug", PLANTS)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[bug](monkeypatch)

    with pytest.raises(AssertionError):  # noqa: PT012  which of the runs finds it does not matter
        for seed in range(RUNS_FOR_A_BUG):
            run(World(page_size=1 + seed % 3), random_steps(seed, RUN_STEPS))
