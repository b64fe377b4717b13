"""What a prefix call does when Redis fails or others write meanwhile, step by step."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from sessionstore.errors import OutcomeUnknownError, SessionNotFoundError, StoreUnavailableError
from sessionstore.protocol.bulk_operations import MAX_CHANGED, Mode, change_prefix
from sessionstore.protocol.calls import Terms, WriteContext
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.protocol.replies import (
    HeadReply,
    LeaseStatusReply,
    ScanReply,
    SessionsReply,
    StoredSession,
    WriteReply,
)
from sessionstore.session import BulkResult

Step = Any


class Change:
    """A prefix call that has found sessions; the test answers its writes."""

    def __init__(self, mode: Mode, *keys: str, terms: Terms | None = None) -> None:
        self.context = WriteContext(EnvironmentKeyspace("ss", "checkout", "staging"), 1000, 2000, lambda: 100.0)
        self.operation: Generator[Step, Any, BulkResult] = change_prefix(self.context, "ci-", mode, terms or Terms())
        self.result: BulkResult | None = None
        self.step: Step = next(self.operation)
        self.answer(ScanReply("0", keys, True))
        for start in range(0, len(keys), 100):
            states = [StoredSession(key, 1, "x", None, (), 0, 0, 1, 1, 10**13) for key in keys[start : start + 100]]
            self.answer(SessionsReply(1, tuple(states)))

    def answer(self, result: Any) -> None:
        self._go(lambda: self.operation.send(result))

    def fail(self, error: Exception) -> None:
        self._go(lambda: self.operation.throw(error))

    def _go(self, go: Callable[[], Step]) -> None:
        try:
            self.step = go()
        except StopIteration as stop:
            self.step, self.result = None, stop.value

    @property
    def waits(self) -> str:
        """What the step says of whether a writer waits for it."""
        wait: str = self.step.args[4]
        return wait


def written(rev: int, *, changed: bool = True, target_rev: int | None = None) -> WriteReply:
    return WriteReply(status="ok", rev=rev, target_rev=rev if target_rev is None else target_rev, changed=changed)


def test_only_the_last_write_asks_the_views_to_acknowledge_at_once() -> None:
    change = Change("delete", "ci-1", "ci-2", "ci-3")
    asked = []
    for rev in (1, 2, 3):
        assert change.step.script.name == "delete"
        asked.append(change.waits)
        change.answer(written(rev))

    assert asked == ["0", "0", "1"]
    assert change.result is not None
    assert change.result.effect is not None
    assert (change.result.count, change.result.effect.revision) == (3, 3)
    assert change.context.known_rev == 3


def test_no_write_asks_where_the_caller_does_not_wait() -> None:
    change = Change("delete", "ci-1", terms=Terms(wait=False))

    assert change.waits == "0"
    change.answer(written(1))
    assert change.result is not None
    assert change.result.effect is not None
    assert change.result.effect.waited is False


def test_a_failure_before_the_first_write_is_as_it_is() -> None:
    change = Change("delete", "ci-1", "ci-2")

    with pytest.raises(StoreUnavailableError, match="nothing was changed") as caught:
        change.fail(StoreUnavailableError("Redis can't be reached; nothing was changed, try again later."))
    assert type(caught.value) is StoreUnavailableError


@pytest.mark.parametrize(
    ("mode", "done", "error"),
    [
        ("delete", 0, OutcomeUnknownError("It was applied whole or not at all.")),
        ("delete", 1, StoreUnavailableError("Redis can't be reached; nothing was changed, try again later.")),
        ("reset", 2, OutcomeUnknownError("It was applied whole or not at all.")),
    ],
)
def test_a_failure_midway_says_what_was_done(mode: Mode, done: int, error: Exception) -> None:
    change = Change(mode, "ci-1", "ci-2", "ci-3")
    for rev in range(1, done + 1):
        change.answer(written(rev))

    with pytest.raises(OutcomeUnknownError, match=f"failed midway: {done} sessions were {mode}") as caught:
        change.fail(error)
    assert caught.value.__cause__ is error
    assert "nothing was changed" not in str(caught.value)


def test_a_session_that_is_deleted_meanwhile_is_passed_over() -> None:
    change = Change("reset", "ci-1", "ci-2")
    change.answer(written(5))

    change.fail(SessionNotFoundError("gone"))

    # Then it waits for the write before that
    assert change.result is not None
    assert change.result.effect is not None
    assert (change.result.count, change.result.effect.revision) == (1, 5)


def test_what_all_others_have_done_meanwhile_is_waited_for() -> None:
    # Given sessions that others delete between the look and the write
    change = Change("delete", "ci-1")
    change.answer(written(7, changed=False))

    # Then it waits for the head, as after writes of its own
    assert change.step.script.name == "head"
    change.answer(HeadReply(1, 9, "a"))
    assert (change.step.script.name, change.step.args[0]) == ("lease_status", 9)
    change.answer(LeaseStatusReply(1, 9, 1, 0, 0, 0, 0, "e"))
    assert change.result is not None
    assert change.result.effect is not None
    assert (change.result.count, change.result.effect.revision, change.result.effect.confirmed) == (0, 9, 1)


def test_the_highest_revision_is_waited_for() -> None:
    # Given a reset that others have made before, whose revision is an old one
    change = Change("reset", "ci-1", "ci-2")
    change.answer(written(8))
    change.answer(written(8, changed=False, target_rev=3))

    assert change.result is not None
    assert change.result.effect is not None
    assert (change.result.count, change.result.effect.revision) == (1, 8)


def test_the_search_ends_once_there_are_more_than_are_changed() -> None:
    keys = tuple(f"ci-{number}" for number in range(MAX_CHANGED + 500))
    change = Change("delete", *keys[: MAX_CHANGED + 100])

    assert change.step.script.name == "delete"
    for rev in range(MAX_CHANGED):
        change.answer(written(rev))
    assert change.result is not None
    assert (change.result.count, change.result.more) == (MAX_CHANGED, True)
