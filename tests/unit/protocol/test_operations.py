"""What a write waits for, step by step, by hand-fed answers and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from sessionstore.errors import (
    InvalidQueryError,
    NotDurableError,
    NotEffectiveError,
    StoreClosedError,
    StoreUnavailableError,
    TooFewViewsError,
)
from sessionstore.protocol import calls, operations
from sessionstore.protocol.calls import Call, DurableCall, Replicated, Terms, WriteContext
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.protocol.messages import Applied
from sessionstore.protocol.operations import AwaitApplied, Pause
from sessionstore.protocol.replies import (
    IndexPage,
    LeaseStatusReply,
    SessionsReply,
    StoredSession,
    ViewReply,
    ViewsReply,
    WriteReply,
)
from sessionstore.session import Session, SessionPatch

STATE = StoredSession("ci-42", 7, "x", None, (), 0, 0, 1, 1, 10**13)


class Write:
    """One put, whose steps are answered by the test."""

    def __init__(self, views: int = 0, replicas: int = 0, found: int = 0, durable_s: float = 1.0, **reply: Any) -> None:
        self.now = 100.0
        context = WriteContext(EnvironmentKeyspace("ss", "checkout", "staging"), 1000, 2000, lambda: self.now)
        call = calls.put(context, "w7", "ci-42", SessionPatch(label="x"))
        terms = Terms(views=views, replicas=replicas)
        self.operation: Generator[Any, Any, Session] = operations.write(context, call, terms)
        self.session: Session | None = None
        step = next(self.operation)
        assert isinstance(step, DurableCall if replicas else Call)
        self.step: Any = step
        fields = {
            "status": "ok",
            "now": 1,
            "rev": 7,
            "target_rev": 7,
            "live": 0,
            "pending": 0,
            "epoch": "e",
            "session": STATE,
        }
        answer = WriteReply(**{**fields, **reply})
        if replicas:
            # Redis waited after its answer.
            self.answer(Replicated(answer, self.now + 0.001, found), after=0.001 + durable_s)
        else:
            self.answer(answer, after=0.001)

    def answer(self, result: Any, after: float = 0.0) -> None:
        """Answer the step, so many seconds later."""
        self.now += after
        self._go(lambda: self.operation.send(result))

    def fail(self, error: Exception) -> None:
        self._go(lambda: self.operation.throw(error))

    def _go(self, go: Any) -> None:
        try:
            self.step = go()
        except StopIteration as stop:
            self.step, self.session = None, stop.value


def lease_status(**fields: Any) -> LeaseStatusReply:
    defaults = {
        "now": 1,
        "rev": 7,
        "live": 1,
        "pending": 0,
        "expired": 0,
        "lease_left_ms": 500,
        "countable_in_ms": 0,
        "epoch": "e",
    }
    return LeaseStatusReply(**{**defaults, **fields})


def views_at(*applied: int, rev: int = 7, epoch: str = "e") -> ViewsReply:
    """Live views that have reported these revisions."""
    return ViewsReply(1, rev, epoch, tuple(ViewReply(f"l{n}", "{}", one, 500) for n, one in enumerate(applied)))


def test_closing_the_store_during_a_pause_reports_the_write_as_committed() -> None:
    write = Write(countable_in_ms=2000)
    assert isinstance(write.step, Pause)

    with pytest.raises(NotEffectiveError, match="was committed as revision 7"):
        write.fail(StoreClosedError("closed"))


def test_a_write_without_views_is_one_step() -> None:
    write = Write()
    assert write.session is not None
    assert write.session.effect is not None
    assert (write.session.effect.confirmed, write.session.effect.waited) == (0, True)


def test_a_write_waits_for_the_message_that_views_have_applied_it() -> None:
    write = Write(live=2, pending=2)
    assert isinstance(write.step, AwaitApplied)
    write.answer(Applied(7, 2, 0, "e"), after=0.002)
    assert write.session is not None
    assert write.session.effect is not None
    assert write.session.effect.confirmed == 2


def test_a_write_pauses_while_leases_may_be_missing() -> None:
    # Given: every view that is seen has applied the write, and a lease's time has to pass after a loss of history.
    write = Write(live=1, pending=0, countable_in_ms=2000)

    # Then: it is one pause of that time, not a loop that asks again and again for what it knows already.
    assert isinstance(write.step, Pause)
    assert write.step.seconds == pytest.approx(2.0)
    write.answer(None, after=2.0)
    assert write.session is not None


def test_a_write_pauses_for_a_lease_at_most() -> None:
    write = Write(live=1, pending=0, countable_in_ms=10**12)

    assert isinstance(write.step, Pause)
    assert write.step.seconds == pytest.approx(2.0)


def test_a_write_that_is_always_told_to_wait_gives_up() -> None:
    write = Write(live=1, pending=1)

    def be_told_to_wait() -> None:
        while True:
            if isinstance(write.step, AwaitApplied):
                write.answer(None, after=write.step.timeout_s)
            else:
                write.answer(lease_status(pending=1, countable_in_ms=10**12))

    with pytest.raises(NotEffectiveError, match="clock is set back"):
        be_told_to_wait()
    assert write.now - 100.0 < 2.0 * (1 + 1 / 3 + 1 / 20) + 1.6


def test_after_the_message_only_the_pause_is_left() -> None:
    write = Write(live=1, pending=1, countable_in_ms=2000)
    assert isinstance(write.step, AwaitApplied)
    write.answer(Applied(7, 1, 0, "e"), after=0.5)
    assert isinstance(write.step, Pause)
    assert write.step.seconds == pytest.approx(1.5)


def test_after_a_message_of_another_epoch_the_write_asks_for_the_leases() -> None:
    # Given: the driver has kept a message that came before the write's answer did.
    write = Write(live=1, pending=1)
    assert isinstance(write.step, AwaitApplied)
    assert write.step.sent_s > 0

    # When: it is of another epoch.
    write.answer(Applied(7, 1, 0, "other"))

    # Then: the leases are looked at, and the next wait takes only what is new.
    assert isinstance(write.step, Call)
    write.answer(lease_status(pending=1))
    assert isinstance(write.step, AwaitApplied)
    assert write.step.sent_s == 0


def test_the_newest_answer_decides_how_long_leases_may_be_missing() -> None:
    # Given: the answer came late, so that its end of the settling lies too late.
    write = Write(live=1, pending=1, countable_in_ms=2000)
    write.answer(None, after=0.05)
    write.answer(lease_status(pending=1, countable_in_ms=1900))
    write.answer(None, after=1.95)

    # When: Redis says that it is over, then: nothing is waited for any more.
    write.answer(lease_status(pending=0, countable_in_ms=0))
    assert write.session is not None


def test_a_loss_of_history_during_the_wait_is_an_error_with_the_revision() -> None:
    write = Write(live=1, pending=1)
    write.answer(None, after=0.05)
    with pytest.raises(NotEffectiveError, match="committed as revision 7") as caught:
        write.answer(lease_status(rev=3))
    assert caught.value.revision == 7


def test_if_redis_stays_away_the_wait_ends_and_the_error_says_committed() -> None:
    write = Write(live=1, pending=1)

    def stay_away() -> None:
        for _ in range(1000):
            write.answer(None, after=0.5)
            write.fail(StoreUnavailableError("away"))

    with pytest.raises(NotEffectiveError, match="committed") as caught:
        stay_away()
    assert isinstance(caught.value.__cause__, StoreUnavailableError)
    assert write.now < 100 + 2 * (1 + 1 / 3 + 1 / 20) + 1 + 1.1


class TestReplicas:
    """Replicas that a write asks for."""

    def test_are_told_in_the_effect(self) -> None:
        write = Write(replicas=1, found=2)
        assert write.session is not None
        effect = write.session.effect
        assert effect is not None
        assert effect.replicas == 2
        assert effect.commit_s == pytest.approx(0.001)
        assert effect.durable_s == pytest.approx(1.0)

    def test_too_few_are_an_error_once_the_views_serve_the_write(self) -> None:
        write = Write(replicas=2, found=1, live=1, pending=1)
        assert isinstance(write.step, AwaitApplied)
        with pytest.raises(NotDurableError, match="as revision 7 of checkout/staging") as caught:
            write.answer(Applied(7, 1, 0, "e"))
        assert (caught.value.revision, caught.value.replicas) == (7, 1)

    def test_a_message_that_came_while_replicas_were_waited_for_counts(self) -> None:
        write = Write(replicas=1, found=1, live=1, pending=1)
        assert isinstance(write.step, AwaitApplied)
        assert write.step.sent_s == pytest.approx(1.001)

    def test_leases_run_on_while_replicas_are_waited_for(self) -> None:
        write = Write(replicas=1, found=1, countable_in_ms=2000)
        assert isinstance(write.step, Pause)
        assert write.step.seconds == pytest.approx(1.0)

    def test_views_are_asked_even_if_the_replicas_took_longer_than_any_lease(self) -> None:
        # Given a deadline of many leases, and a message that was lost or came too early to be remembered
        write = Write(replicas=1, found=0, durable_s=10, live=1, pending=1)
        assert isinstance(write.step, AwaitApplied)
        write.answer(None, after=write.step.timeout_s)

        # Then the views decide whether the write is effective, and it is not durable
        with pytest.raises(NotDurableError):
            write.answer(lease_status(live=1, pending=0))

    def test_a_write_that_may_not_be_in_effect_says_so_first(self) -> None:
        write = Write(replicas=2, found=1, live=1, pending=1)
        with pytest.raises(NotEffectiveError):
            write.fail(StoreClosedError("closed"))

    @pytest.mark.parametrize("replicas", [-1, 11, True, 1.0, "1", None])
    def test_are_a_whole_number_with_bounds(self, replicas: Any) -> None:
        with pytest.raises(InvalidQueryError, match="replicas must be a whole number from 0 to 10"):
            Terms(replicas=replicas)


class TestReports:
    """A write that asks for views counts their own reports once it is effective."""

    def test_are_counted_after_the_wait(self) -> None:
        write = Write(views=2, live=3, pending=3)
        assert isinstance(write.step, AwaitApplied)
        write.answer(Applied(7, 3, 0, "e"), after=0.002)
        assert isinstance(write.step, Call)

        write.answer(views_at(7, 6, 9))

        assert write.session is not None
        assert write.session.effect is not None
        assert write.session.effect.confirmed == 2

    def test_too_few_are_an_error_that_says_that_the_state_is_set(self) -> None:
        write = Write(views=2, live=1)

        with pytest.raises(TooFewViewsError, match="The state is set, as revision 7 of checkout/staging") as caught:
            write.answer(views_at(7))

        assert (caught.value.revision, caught.value.confirmed) == (7, 1)

    def test_of_live_views_are_waited_for(self) -> None:
        # Given a view that joined after the write: no writer waits for it, and it has yet to report
        write = Write(views=1, live=1, pending=0)
        write.answer(views_at(6))
        assert isinstance(write.step, Pause)
        write.answer(None, after=write.step.seconds)

        # When it has renewed its lease
        write.answer(views_at(7))

        assert write.session is not None

    def test_are_not_waited_for_longer_than_a_lease_can_last(self) -> None:
        write = Write(views=1, live=1, pending=0)

        def never_report() -> None:
            for _ in range(100):
                write.answer(views_at(6))
                write.answer(None, after=write.step.seconds)

        with pytest.raises(TooFewViewsError):
            never_report()
        assert 2 * (1 + 1 / 3) < write.now - 100 < 2 * (1 + 1 / 3 + 1 / 20) + 0.6

    @pytest.mark.parametrize("lost", [views_at(7, rev=6), views_at(7, epoch="other")])
    def test_of_another_history_count_for_nothing(self, lost: ViewsReply) -> None:
        write = Write(views=1, live=1, pending=0)

        with pytest.raises(NotEffectiveError, match="emptied, restarted or replaced"):
            write.answer(lost)

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (StoreUnavailableError("Redis can't be reached; nothing was changed."), "stopped answering"),
            (StoreClosedError("closed"), "closed"),
        ],
    )
    def test_that_cant_be_counted_do_not_deny_the_write(self, error: Exception, words: str) -> None:
        write = Write(views=1, live=1, pending=0)

        with pytest.raises(NotEffectiveError, match=f"was committed as revision 7.*{words}"):
            write.fail(error)


def test_a_page_is_short_if_the_index_names_many_expired_sessions() -> None:
    # Given: an index whose members are all gone.
    listing = operations.list_sessions(EnvironmentKeyspace("ss", "checkout", "staging"), 5, None, None)
    step: Any = next(listing)
    looks = 0

    def look_on() -> None:
        nonlocal step, looks
        while True:
            if step.script.name == "page":
                looks += 1
                count = int(step.args[1])
                members = tuple((f"k{looks}-{n}", 10**6 - looks) for n in range(count))
                step = listing.send(IndexPage(status="ok", members=members, next=members[-1]))
            else:
                step = listing.send(SessionsReply(1, ()))

    # When: a page is read, then: it ends after a bounded number of looks, and says where to go on.
    with pytest.raises(StopIteration) as stop:
        look_on()
    page = stop.value.value
    assert page.sessions == ()
    assert page.next_cursor is not None
    assert looks <= 20
