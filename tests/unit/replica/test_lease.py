"""The view's side of the lease protocol, rule by rule. test_lease_protocol.py shows that the rules are enough."""

from __future__ import annotations

import itertools
from math import inf
from typing import Any

import pytest

from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.protocol.messages import SessionDeleted
from sessionstore.protocol.replies import AckReply, LeaseReply
from sessionstore.replica.chain import KNOWN_REVISIONS, Chain, Position
from sessionstore.replica.lease import Lease, LeaseRequest

KEYS = EnvironmentKeyspace("ss", "checkout", "staging")
#: Of the tests: a lease of 3 s and a margin of 0.3 s.
LEASE_MS = 3000
EPOCH = "run:l1"
#: Redis's clock where the view's stands at 0.
REDIS_MS = 1_000_000

AT_2 = Position(2, "w2")
AT_3 = Position(3, "w3")
AT_4 = Position(4, "w4")


class View:
    """A lease, the chain that it looks at, and the local time."""

    def __init__(self) -> None:
        ids = itertools.count(1)
        self.lease = Lease(KEYS, LEASE_MS, "{}", lambda: f"l{next(ids)}", 0.3)
        self.now = 100.0
        self.resync(2)

    def poll(self) -> LeaseRequest | None:
        return self.lease.poll(self.now)

    def send(self, kind: str) -> LeaseRequest:
        request = self.poll()
        assert request is not None
        assert request.kind == kind
        return request

    def reply(
        self, request: LeaseRequest, status: str = "ok", head: Position = AT_2, *, after: float = 0.0, **fields: Any
    ) -> None:
        """The answer comes, `after` s later; Redis ran the request when it was sent."""
        reply: dict[str, Any] = {
            "status": status,
            "now": REDIS_MS + round(self.now * 1000),
            "rev": head.rev,
            "id": head.id,
            "epoch": EPOCH,
            "lease_ms": LEASE_MS,
        }
        self.now += after
        answer = AckReply(status=status) if request.kind == "ack" else LeaseReply(**{**reply, **fields})
        self.lease.answered(request, answer, self.now)

    def resync(self, rev: int) -> None:
        """A new chain begins at this revision."""
        self.chain = Chain(rev, f"w{rev}", 0)
        self.lease.at(self.chain)

    def apply(self, *revisions: int, epoch: str = EPOCH) -> None:
        for rev in revisions:
            change = SessionDeleted(rev=rev, id=f"w{rev}", prev=f"w{rev - 1}", at=1, epoch=epoch, session_key="a")
            self.chain.accept(change)
            self.lease.at(self.chain)

    def stop_being_live(self) -> None:
        self.lease.at(None)

    @property
    def fresh(self) -> bool:
        return self.lease.fresh_until() > self.now


@pytest.fixture
def view() -> View:
    return View()


@pytest.fixture
def held(view: View) -> View:
    """A view that is fresh, by a lease from 100.0 on."""
    view.reply(view.send("join"))
    return view


class TestJoin:
    def test_a_live_view_joins_with_its_position(self, view: View) -> None:
        request = view.send("join")

        assert (request.lease_id, request.position, request.sent_at) == ("l1", AT_2, 100.0)
        assert request.call.args == ("l1", LEASE_MS, "{}", 2, "w2")
        assert not view.fresh

    def test_a_view_that_is_not_live_does_not_join(self, view: View) -> None:
        view.stop_being_live()

        assert view.poll() is None
        assert view.lease.wake_at == inf

    def test_only_one_request_is_in_flight(self, view: View) -> None:
        view.send("join")

        assert view.poll() is None
        assert view.lease.wake_at == inf

    def test_it_counts_from_before_the_request_less_the_margin(self, view: View) -> None:
        view.reply(view.send("join"), after=1.0)

        assert view.lease.fresh_until() == pytest.approx(100.0 + 3.0 - 0.3)

    def test_it_is_fresh_once_it_has_applied_the_head_that_was_returned(self, view: View) -> None:
        view.reply(view.send("join"), head=AT_4)
        assert not view.fresh

        view.apply(3)
        assert not view.fresh
        view.apply(4)
        assert view.fresh

    def test_a_head_that_was_passed_before_the_answer_came_counts(self, view: View) -> None:
        request = view.send("join")
        view.apply(3, 4)

        view.reply(request, head=AT_3)

        assert view.fresh

    def test_a_head_that_is_too_old_to_compare_does_not_count_but_the_next_one_may(self, view: View) -> None:
        # Given more changes since the join than the chain knows the ids of
        request = view.send("join")
        last = 3 + KNOWN_REVISIONS
        view.apply(*range(3, last + 1))
        view.reply(request, head=AT_3)
        assert not view.fresh

        view.now += 1.0
        view.reply(view.send("renew"), head=Position(last, f"w{last}"))

        assert view.fresh

    def test_a_head_that_is_on_its_way_is_not_replaced_by_a_later_one(self, view: View) -> None:
        # Given a writer at whose every change the head is one ahead
        view.reply(view.send("join"), head=AT_3)
        view.now += 1.0
        view.reply(view.send("renew"), head=AT_4)

        view.apply(3)

        assert view.fresh

    def test_a_head_below_what_was_applied_gives_the_lease_up(self, held: View) -> None:
        # Given a Redis that has lost its last write
        held.apply(3)
        held.now = 101.0

        held.reply(held.send("renew"), head=AT_2)

        assert not held.fresh
        assert held.lease.take_revocation() == ("Redis went back from revision 3 to 2: it has lost part of its history")

    @pytest.mark.parametrize("passed", ["before", "after"])
    def test_another_revision_of_that_number_is_a_fork(self, view: View, passed: str) -> None:
        request = view.send("join")
        if passed == "before":
            view.apply(3)
        view.reply(request, head=Position(3, "other"))
        if passed == "after":
            view.apply(3)

        assert not view.fresh
        assert view.lease.take_revocation() is not None
        assert view.send("leave").lease_id == "l1"

    def test_redis_may_detect_the_fork(self, view: View) -> None:
        view.reply(view.send("join"), "forked", head=Position(1, "x"), lease_ms=0)

        assert not view.fresh
        assert "another history" in (view.lease.take_revocation() or "")
        assert view.lease.take_revocation() is None

    def test_a_join_without_an_answer_is_left_by_its_id(self, view: View) -> None:
        request = view.send("join")
        view.lease.failed(request, view.now)
        assert view.poll() is None

        view.now = view.lease.wake_at
        leave = view.send("leave")
        assert leave.lease_id == "l1"
        view.reply(leave)
        assert view.send("join").lease_id == "l2"


class TestRenew:
    def test_every_third_of_the_lease(self, held: View) -> None:
        assert held.poll() is None
        assert held.lease.wake_at == pytest.approx(101.0)

        held.now = 101.0
        held.apply(3)
        request = held.send("renew")

        assert request.call.args == ("l1", LEASE_MS, 3, "w3", "")
        held.reply(request, head=AT_3)
        assert held.lease.fresh_until() == pytest.approx(101.0 + 3.0 - 0.3)

    @pytest.mark.parametrize("by", ["join", "renew", "ack"])
    def test_it_names_the_epoch_if_redis_has_recorded_its_position(self, held: View, by: str) -> None:
        # Given a position that a request has told, and Redis has answered
        if by != "join":
            held.apply(3)
            held.now = 101.0 if by == "renew" else held.now
            held.lease.want_ack()
            held.reply(held.send(by), head=AT_3)
        held.now += 1.0

        # Then the next renewal says so
        request = held.send("renew")
        assert request.call.args[2:] == ((2, "w2", EPOCH) if by == "join" else (3, "w3", EPOCH))

        # And the one after a change does not
        held.reply(request, "same", rev=0, id="", epoch="")
        held.apply(4 if by != "join" else 3)
        held.now += 1.0
        assert held.send("renew").call.args[4] == ""

    def test_a_request_without_an_answer_has_recorded_nothing(self, held: View) -> None:
        held.apply(3)
        held.lease.want_ack()
        held.lease.failed(held.send("ack"), held.now)

        held.now = 101.0
        assert held.send("renew").call.args == ("l1", LEASE_MS, 3, "w3", "")

    def test_the_position_of_another_lease_counts_for_nothing(self, held: View) -> None:
        held.now = 104.0
        held.reply(held.send("renew"), "expired", lease_ms=0)
        held.reply(held.send("join"), head=AT_3)
        held.apply(3)

        # The join was told revision 2, and answered with 3
        held.now = 105.0
        assert held.send("renew").call.args == ("l2", LEASE_MS, 3, "w3", "")

    def test_if_the_head_is_its_position_it_has_reached_it(self, view: View) -> None:
        # Given a join that named a head which was too old to compare
        request = view.send("join")
        last = 3 + KNOWN_REVISIONS
        view.apply(*range(3, last + 1))
        view.reply(request, head=AT_2)
        assert not view.fresh

        view.now = 101.0
        view.reply(view.send("renew"), "same", rev=0, id="", epoch="")

        assert view.fresh
        assert view.lease.fresh_until() == pytest.approx(101.0 + 3.0 - 0.3)

    def test_it_lasts_as_long_as_redis_grants(self, held: View) -> None:
        held.now = 102.0
        held.reply(held.send("renew"), lease_ms=2150)

        assert held.lease.fresh_until() == pytest.approx(102.0 + 2.15 - 0.3)

    def test_a_renewal_that_grants_less_does_not_shorten_the_lease(self, held: View) -> None:
        held.now = 101.0
        held.reply(held.send("renew"), lease_ms=1500, after=1.0)

        assert held.lease.fresh_until() == pytest.approx(100.0 + 3.0 - 0.3)

    def test_a_view_that_is_fresh_stays_so_while_a_later_head_is_on_its_way(self, held: View) -> None:
        held.now = 101.0
        held.reply(held.send("renew"), head=AT_4)

        assert held.fresh

    def test_it_is_retried_soon_while_the_lease_lasts(self, held: View) -> None:
        held.now = 101.0
        held.lease.failed(held.send("renew"), held.now)
        assert held.poll() is None
        assert held.lease.wake_at == pytest.approx(101.15)

        held.now = 101.2
        assert held.send("renew").lease_id == "l1"
        assert held.fresh

    def test_it_is_retried_less_often_after_that(self, held: View) -> None:
        held.now = 103.0
        held.lease.failed(held.send("renew"), held.now)

        assert held.lease.wake_at == pytest.approx(104.0)
        assert not held.fresh

    def test_a_renewal_just_in_time_makes_the_view_fresh_again(self, held: View) -> None:
        # The lease has not run out in Redis, so that writers have waited all along
        held.now = 102.9
        request = held.send("renew")
        assert not held.fresh

        held.reply(request)

        assert held.fresh

    def test_after_a_late_renewal_it_joins_again(self, held: View) -> None:
        held.now = 104.0
        held.reply(held.send("renew"), "expired", lease_ms=0)

        assert not held.fresh
        assert held.lease.take_revocation() is None
        assert held.send("join").lease_id == "l2"

    @pytest.mark.parametrize("status", ["refused", "forked"])
    def test_a_refused_renewal_gives_the_lease_up_and_causes_a_resync(self, held: View, status: str) -> None:
        held.now = 101.0
        held.reply(held.send("renew"), status, lease_ms=0)

        assert not held.fresh
        assert held.lease.take_revocation() is not None
        assert held.send("leave").lease_id == "l1"

    def test_an_answer_that_comes_after_the_lease_was_given_up_is_void(self, held: View) -> None:
        held.now = 101.0
        request = held.send("renew")
        held.stop_being_live()
        held.resync(3)

        held.reply(request, head=AT_3)

        assert not held.fresh
        assert held.send("leave").lease_id == "l1"

    def test_an_answer_that_comes_after_the_time_out_is_void(self, held: View) -> None:
        held.now = 101.0
        request = held.send("renew")
        held.lease.failed(request, held.now)

        held.reply(request)

        assert held.lease.fresh_until() == pytest.approx(102.7)

    @pytest.mark.parametrize(("step_ms", "given_up"), [(200, True), (100, False), (-200, True), (-100, False)])
    def test_a_step_of_redis_clock_gives_the_lease_up(self, held: View, step_ms: int, given_up: bool) -> None:
        held.now = 101.0
        held.reply(held.send("renew"), now=REDIS_MS + 101_000 + step_ms)

        assert held.fresh is not given_up
        assert (held.lease.take_revocation() is not None) is given_up

    def test_a_slow_answer_is_no_step(self, held: View) -> None:
        held.now = 101.0
        held.reply(held.send("renew"), after=1.0)
        held.now = 103.0
        held.reply(held.send("renew"), now=REDIS_MS + 103_500, after=1.0)

        assert held.lease.take_revocation() is None


class TestAck:
    def test_only_if_a_writer_waits(self, held: View) -> None:
        held.apply(3)
        assert held.poll() is None

        held.lease.want_ack()
        assert held.lease.wake_at <= held.now
        request = held.send("ack")

        assert request.call.args == ("l1", 3, "w3", EPOCH)
        held.reply(request)
        assert held.poll() is None

    def test_one_acknowledges_several_changes(self, held: View) -> None:
        held.apply(3)
        held.lease.want_ack()
        request = held.send("ack")
        held.apply(4)
        held.lease.want_ack()

        held.reply(request)

        assert held.send("ack").position == AT_4

    def test_not_for_an_acknowledged_revision(self, view: View) -> None:
        # Given a join that returned the head which is applied just now
        view.reply(view.send("join"), head=AT_3)
        view.apply(3)
        view.lease.want_ack()

        assert view.poll() is None

    def test_it_does_not_prolong_the_lease(self, held: View) -> None:
        held.apply(3)
        held.lease.want_ack()
        held.now = 100.5
        held.reply(held.send("ack"))

        assert held.lease.fresh_until() == pytest.approx(102.7)

    def test_it_is_sent_again_if_its_answer_is_lost(self, held: View) -> None:
        held.apply(3)
        held.lease.want_ack()
        held.lease.failed(held.send("ack"), held.now)

        held.now = held.lease.wake_at
        assert held.send("ack").position == AT_3

    def test_if_the_lease_has_expired_it_joins_again(self, held: View) -> None:
        held.apply(3)
        held.lease.want_ack()
        held.reply(held.send("ack"), "expired")

        assert not held.fresh
        assert held.send("join").lease_id == "l2"


class TestEpochs:
    """What another Redis has published may come after the lease was taken from this one."""

    def test_a_change_of_another_epoch_gives_the_lease_up(self, held: View) -> None:
        held.apply(3, epoch="run0:l1")

        assert not held.fresh
        assert "restarted" in (held.lease.take_revocation() or "")

    def test_also_if_it_arrived_before_the_answer(self, view: View) -> None:
        request = view.send("join")
        view.apply(3, epoch="run0:l1")

        view.reply(request, head=AT_2)

        assert not view.fresh
        assert view.lease.take_revocation() is not None

    def test_changes_up_to_the_head_may_have_another_epoch(self, view: View) -> None:
        # Given a change that was published before the first lease began the epoch
        request = view.send("join")
        view.apply(3, epoch="")

        view.reply(request, head=AT_3)

        assert view.fresh

    def test_also_if_they_arrive_after_the_answer(self, view: View) -> None:
        view.reply(view.send("join"), head=AT_3)
        view.apply(3, epoch="")

        assert view.fresh


class TestLeaving:
    def test_a_view_that_is_not_live_first_gives_the_lease_up_and_then_leaves(self, held: View) -> None:
        held.stop_being_live()
        assert not held.fresh
        assert held.lease.wake_at <= held.now

        leave = held.send("leave")
        assert leave.call.args == ("l1",)
        held.reply(leave)
        assert held.poll() is None

    def test_it_leaves_once(self, held: View) -> None:
        held.stop_being_live()
        held.lease.failed(held.send("leave"), held.now)
        held.now += 10

        assert held.poll() is None

    def test_a_view_that_is_live_again_at_once_gives_the_lease_up_too(self, held: View) -> None:
        held.stop_being_live()
        held.resync(3)

        assert not held.fresh
        held.reply(held.send("leave"))
        assert held.send("join").lease_id == "l2"

    def test_a_new_chain_gives_the_lease_up(self, held: View) -> None:
        held.resync(2)

        assert not held.fresh
        assert held.send("leave").lease_id == "l1"

    def test_closing_leaves_at_once(self, held: View) -> None:
        held.now = 101.0
        held.send("renew")

        leave = held.lease.close()

        assert leave is not None
        assert leave.lease_id == "l1"
        assert not held.fresh
        assert held.poll() is None
        assert held.lease.wake_at == inf
        assert held.lease.close() is None

    def test_closing_without_a_lease_does_nothing(self, view: View) -> None:
        assert view.lease.close() is None


def test_the_margin_is_a_twentieth_of_the_lease_by_default() -> None:
    lease = Lease(KEYS, 2000, "{}", lambda: "l1")
    lease.at(Chain(0, "", 0))
    request = lease.poll(0.0)
    assert request is not None
    lease.answered(request, LeaseReply(status="ok", now=1, rev=0, id="", epoch=EPOCH, lease_ms=2000), 0.0)

    assert lease.fresh_until() == pytest.approx(1.9)
