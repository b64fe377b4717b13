"""The follower, event by event: what look-ups may rely on, touches, and retries."""

from __future__ import annotations

import itertools
from collections import deque
from math import inf
from typing import Any

import pytest

from sessionstore.protocol import calls
from sessionstore.protocol.calls import WriteContext
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.replica.follower import Backoff, Follower, FollowerRequest
from sessionstore.replica.held_session import HeldSession
from sessionstore.replica.lease import MARGIN

from ...support.follower_world import LEASE_MS, FollowerWorld, script_of

LEASE_S = LEASE_MS / 1000


@pytest.fixture
def world() -> FollowerWorld:
    return FollowerWorld()


def live_world(*keys: str, **options: Any) -> FollowerWorld:
    world = FollowerWorld(**options)
    for key in keys:
        world.server.put(key, 86_400_000)
    world.messages.clear()
    world.go_live()
    return world


# Freshness


def test_it_is_fresh_after_a_sync_and_a_join(world: FollowerWorld) -> None:
    world.server.put("a")
    world.follower.subscribed(world.now)
    assert not world.fresh

    ran = world.run()

    assert ran[-1] == "join"
    assert list(world.follower.sessions) == ["a"]
    assert world.follower.fresh_until == pytest.approx(world.now + LEASE_S * (1 - MARGIN))


def test_it_stops_being_fresh_by_time_alone() -> None:
    world = live_world("a")

    world.advance(LEASE_S)

    assert not world.fresh


@pytest.mark.parametrize("event", ["lost", "resync"])
def test_it_is_not_fresh_once_it_may_miss_a_change(event: str) -> None:
    world = live_world("a")

    getattr(world.follower, event)("a reason", world.now)

    assert not world.fresh
    assert world.follower.last_error == "a reason"
    assert list(world.follower.sessions) == ["a"]


def test_after_a_gap_it_is_not_fresh_until_it_has_resynced() -> None:
    # Given one message that is lost
    world = live_world("a")
    world.server.put("b", published=False)

    # When the next one comes
    world.server.put("c")
    world.deliver()

    # Then it is not fresh, until it has read everything anew
    assert not world.fresh
    world.until(lambda: world.fresh, 1.0)
    assert sorted(world.follower.sessions) == ["a", "b", "c"]


def test_an_expired_lease_is_replaced_without_a_resync() -> None:
    # Given a process that was stopped for longer than its lease, after a change that followed the last renewal
    world = live_world("a")
    world.server.put("b")
    world.deliver()
    world.advance(2 * LEASE_S)

    # When it continues
    ran = world.run()

    # Then the renewal finds the lease expired, and a join takes another
    assert ran == ["renew", "join"]
    assert world.fresh
    assert world.follower.replica.resyncs == 0


def test_a_head_below_its_own_position_causes_a_resync() -> None:
    # Given a Redis that has lost its last write
    world = live_world("a")
    world.server.put("b")
    world.deliver()
    world.server.roll_back(1)

    # When the lease is renewed
    world.until(lambda: world.follower.replica.resyncs == 1, LEASE_S)

    # Then what is held is right again
    world.until(lambda: world.fresh, 1.0)
    assert list(world.follower.sessions) == ["a"]


def test_a_head_of_another_history_causes_a_resync() -> None:
    # Given a fork at the same height
    world = live_world("a")
    world.server.put("b")
    world.deliver()
    world.server.roll_back(1)
    world.server.put("c", published=False)

    world.until(lambda: "c" in world.follower.sessions, LEASE_S + 1)

    assert sorted(world.follower.sessions) == ["a", "c"]


def test_the_lease_detects_a_dead_subscription() -> None:
    # Given commands that work, and messages that don't arrive
    world = live_world("a")
    world.server.put("b")
    world.messages.clear()

    # When two renewals have passed
    for _ in range(2):
        world.advance(LEASE_S / 3 + 0.01)
        world.run()

    # Then it has resynced
    assert world.follower.replica.resyncs == 1
    world.until(lambda: world.fresh and "b" in world.follower.sessions, 1.0)


# Expiry and bounds


def test_the_fast_path_ends_at_the_first_expiry(world: FollowerWorld) -> None:
    world.server.put("a", 5_000)
    world.server.put("b", 1_000_000)
    world.messages.clear()
    fast_path = world.follower.add_fast_path(strict=False)

    world.go_live()

    # An upper bound of Redis's time is one ms ahead, at most.
    assert world.now + 4.998 <= fast_path.valid_until <= world.now + 5.0


def test_without_sessions_the_fast_path_has_no_end(world: FollowerWorld) -> None:
    fast_path = world.follower.add_fast_path(strict=False)
    world.go_live()

    assert fast_path.valid_until == inf


def test_a_strict_fast_path_ends_with_the_lease() -> None:
    world = live_world("a")
    serving, strict = world.follower.add_fast_path(strict=False), world.follower.add_fast_path(strict=True)
    world.run()
    world.server.put("b")
    world.deliver()

    assert strict.valid_until == world.follower.fresh_until
    assert serving.valid_until > strict.valid_until

    world.follower.lost("the connection broke", world.now)

    assert strict.valid_until <= world.now < serving.valid_until


def test_a_new_first_expiry_ends_the_fast_path_earlier() -> None:
    world = live_world("a")
    fast_path = world.follower.add_fast_path(strict=False)

    world.server.put("b", 3_000)
    world.deliver()

    assert fast_path.valid_until <= world.now + 3.0


def test_the_fast_path_is_closed_while_a_change_is_applied() -> None:
    # Given a look-up while the new state can be read, but the fast path does not know it yet
    world = live_world("a")
    fast_path = world.follower.add_fast_path(strict=False)
    world.run()
    assert fast_path.valid_until > world.now
    bounds: list[float] = []
    world.follower.replica.watchers.append(lambda key, session: bounds.append(fast_path.valid_until))

    world.server.put("b", 3_000)
    world.deliver()

    assert bounds == [-inf]


def test_the_fast_path_is_closed_while_a_snapshot_replaces_what_is_served(world: FollowerWorld) -> None:
    world.server.put("a", 5_000)
    world.messages.clear()
    fast_path = world.follower.add_fast_path(strict=False)
    bounds: list[float] = []
    world.follower.replica.watchers.append(lambda key, session: bounds.append(fast_path.valid_until))

    world.go_live()
    assert bounds == [-inf]
    # and again
    world.server.put("b", 3_000)
    world.messages.clear()
    world.follower.resync("a message was lost", world.now)
    world.until(lambda: "b" in world.follower.sessions, 5.0)
    assert bounds == [-inf, -inf]


def test_a_dropped_fast_path_is_closed() -> None:
    world = live_world("a")
    fast_path = world.follower.add_fast_path(strict=False)
    world.run()

    world.follower.drop_fast_path(fast_path)
    world.server.put("b")
    world.deliver()

    assert fast_path.valid_until == -inf


def test_an_expired_session_is_dropped_and_reported(world: FollowerWorld) -> None:
    world.server.put("a", 500)
    world.messages.clear()
    world.go_live()
    told: list[tuple[str, object]] = []
    world.follower.replica.watchers.append(lambda key, session: told.append((key, session)))

    world.advance(world.follower.wake_at(world.now) - world.now + 0.001)
    world.poll()

    assert world.follower.sessions == {}
    assert told == [("a", None)]
    assert world.now < 100.0 + 0.502


def test_the_estimate_of_redis_time_is_never_too_early(world: FollowerWorld) -> None:
    # Given slow requests and slow answers
    world.follower.subscribed(world.now)
    for there, back in [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.2, 0.1), (3.0, 0.0)] * 3:
        requests = world.poll()
        world.advance(there)
        replies = [world.server.run(request.call) for request in requests]
        world.advance(back)
        for request, reply in zip(requests, replies, strict=True):
            world.follower.answered(request, reply, world.now)
        assert not requests or world.follower.redis_ms(world.now) >= world.server.now
        world.advance(0.7)


def test_a_late_answer_does_not_blur_the_estimate_of_redis_time() -> None:
    # Given a precise estimate
    world = live_world("a")
    assert world.follower.redis_ms(world.now) - world.server.now <= 1

    # When an answer is slow
    world.advance(LEASE_S / 3 + 0.01)
    (request,) = world.poll()
    world.advance(1.5)
    reply = world.server.run(request.call)
    world.follower.answered(request, reply, world.now)

    # Then the estimate is as precise as before, except for the drift of the clocks
    assert 0 <= world.follower.redis_ms(world.now) - world.server.now <= 2


@pytest.mark.parametrize("step_ms", [-5_000, 5_000])
def test_the_estimate_follows_a_redis_clock_that_was_set(step_ms: int) -> None:
    world = live_world("a")

    world.server.now += step_ms
    world.advance(LEASE_S / 3 + 0.01)
    world.run()

    assert 0 <= world.follower.redis_ms(world.now) - world.server.now <= 2


# Touches


def test_touches_are_flushed_once_each_interval() -> None:
    world = live_world("a", "b")

    # When one session is looked up again and again for three seconds and a half
    begun = world.server.now
    for _ in range(35):
        world.look_up("a")
        world.advance(0.1)
        world.run()
        world.deliver()

    # Then it is touched each second, and the other session never. The time is that of the first look-up since the
    # previous flush.
    assert [list(touch) for touch in world.server.touches] == [["a"]] * 3
    times = [touch["a"] - begun for touch in world.server.touches]
    assert times == pytest.approx([0, 1_100, 2_200], abs=2)


def test_a_flush_takes_more_than_one_batch() -> None:
    keys = [f"k{n}" for n in range(2 * calls.TOUCH_BATCH + 50)]
    world = live_world(*keys)
    for key in keys:
        world.look_up(key)

    world.advance(1.0)
    world.run()

    assert [len(touch) for touch in world.server.touches] == [calls.TOUCH_BATCH, calls.TOUCH_BATCH, 50]
    assert {key for touch in world.server.touches for key in touch} == set(keys)


def test_a_flush_ends_even_if_everything_is_looked_up_during_it() -> None:
    # Given more sessions than one batch, all looked up again and again
    keys = [f"k{n}" for n in range(calls.TOUCH_BATCH + 50)]
    world = live_world(*keys)

    def look_up_all() -> None:
        for key in keys:
            world.look_up(key)

    look_up_all()
    world.advance(1.0)

    # When the flush runs
    for _ in range(10):
        for request in world.poll():
            world.answer(request)
            look_up_all()

    # Then each is sent once, and later look-ups wait for the next flush
    assert sum(map(len, world.server.touches)) == len(keys)
    world.advance(1.0)
    world.run()
    assert sum(map(len, world.server.touches)) == 2 * len(keys)


def test_a_failed_flush_is_merged_and_retried() -> None:
    world = live_world("a", "b")
    world.look_up("a")
    first_seen = world.server.now
    world.advance(1.0)
    touch = only(world.poll(), "touch")

    # When it fails, and the other session is looked up
    world.fail(touch)
    assert world.follower.touch_error is not None
    world.look_up("b")

    # Then both are sent soon, and the first keeps the time of its look-up
    world.advance(0.03)
    world.run()
    (sent,) = world.server.touches
    assert sorted(sent) == ["a", "b"]
    assert 0 <= sent["a"] - first_seen <= 2
    assert world.follower.touch_error is None


def test_a_newer_look_up_replaces_a_failed_touch() -> None:
    world = live_world("a")
    world.look_up("a")
    world.advance(1.0)
    touch = only(world.poll(), "touch")
    world.look_up("a")
    looked_up = world.server.now

    world.fail(touch)
    world.advance(1.0)
    world.run()

    (sent,) = world.server.touches
    assert 0 <= sent["a"] - looked_up <= 2


def test_a_flush_that_keeps_failing_is_retried_less_often() -> None:
    world = live_world("a")
    world.look_up("a")
    tries = 0
    end = world.now + 20.0
    while world.now < end:
        for request in world.poll():
            if script_of(request) == "touch":
                tries += 1
                world.fail(request)
            else:
                world.answer(request)
        world.advance(0.01)

    # 0.02 s and doubling, up to one second
    assert 20 <= tries <= 60


def test_a_deleted_session_is_not_touched() -> None:
    world = live_world("a", "b")
    world.look_up("a")
    world.look_up("b")
    world.server.delete("a")
    world.deliver()

    world.advance(1.0)
    world.run()

    assert [list(touch) for touch in world.server.touches] == [["b"]]
    assert not world.follower.touches


def test_a_short_ttl_shortens_the_interval_of_flushes() -> None:
    world = live_world("a", ttl_ms=400)

    assert world.follower.touch_interval_s == 0.1


def test_the_least_ttl_of_a_session_bounds_the_interval_of_flushes() -> None:
    # Any session may have a TTL of its own, of 60 seconds or more
    keyspace = EnvironmentKeyspace("ss", "checkout", "staging")
    context = WriteContext(keyspace, 86_400_000, 2_000, lambda: 0.0)

    assert Follower(context, "{}", 3600.0).touch_interval_s == 15
    assert Follower(context, "{}", 1.0).touch_interval_s == 1


def test_a_session_with_a_pending_touch_is_in_the_next_flush() -> None:
    # Given a look-up in another thread, which a flush may interrupt at any step
    world = live_world("a")
    session = world.follower.sessions["a"]

    class Watched(deque[HeldSession]):
        def append(self, session: HeldSession) -> None:
            assert session.touched_at, "a flush in between would leave `touched_at` for ever"
            super().append(session)

        def popleft(self) -> HeldSession:
            assert session.touched_at
            return super().popleft()

    world.follower.touches = Watched()
    world.look_up("a")
    world.advance(1.0)
    only(world.poll(), "touch")

    assert not session.touched_at


def test_two_threads_may_record_one_look_up_each() -> None:
    # Given a session that two threads look up at the same time: both append it
    world = live_world("a")
    session = world.follower.sessions["a"]
    world.look_up("a")
    world.follower.touches.append(session)

    # When it is looked up again, right after the flush has taken the first entry
    world.advance(1.0)
    touch = only(world.poll(), "touch")
    world.look_up("a")
    world.answer(touch)

    # Then each look-up is flushed, and nothing stays behind
    world.advance(1.1)
    world.run()
    assert [list(touch) for touch in world.server.touches] == [["a"], ["a"]]
    assert not world.follower.touches
    assert not session.touched_at


def test_a_changed_session_is_touched_once_with_its_last_look_up() -> None:
    # Given look-ups before and after a change
    world = live_world("a")
    world.look_up("a")
    world.advance(0.5)
    world.server.put("a", 86_400_000)
    world.deliver()
    world.look_up("a")
    looked_up = world.server.now

    world.advance(0.5)
    world.run()

    (sent,) = world.server.touches
    assert 0 <= sent["a"] - looked_up <= 2


def test_a_touch_does_not_name_a_revision_of_a_lost_history() -> None:
    # Given a store that has seen a revision which Redis has lost
    world = live_world("a")
    world.context.learn(1_000, recounting=False)
    world.look_up("a")

    world.advance(1.0)
    world.run()

    # Then the touch names the revision of this view, so that Redis does not take its leases for lost
    assert world.server.known == [world.follower.replica.rev]


# Retries


def test_a_failed_sync_is_retried_soon_and_then_less_often(world: FollowerWorld) -> None:
    world.follower.subscribed(world.now)
    tries: list[float] = []
    end = world.now + 10.0
    while world.now < end:
        for request in world.poll():
            assert script_of(request) == "snapshot"
            tries.append(world.now)
            world.fail(request)
        world.advance(0.005)

    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert waits[0] <= 0.03
    assert max(waits) <= 1.01
    assert all(wait >= 0.45 for wait in waits[7:])


def test_a_failed_touch_does_not_delay_a_sync() -> None:
    # Given touches that have failed until the back-off is a second
    world = live_world("a")
    world.look_up("a")
    for _ in range(3000):
        for request in world.poll():
            if script_of(request) == "touch":
                world.fail(request)
            else:
                world.answer(request)
        world.advance(0.01)

    # When it resyncs
    world.follower.resync("a reason", world.now)

    # Then the sync starts at once
    assert [script_of(request) for request in world.poll() if script_of(request) != "touch"][-1] == "snapshot"


def test_a_burst_of_inconsistencies_does_not_postpone_the_sync() -> None:
    # Given a burst of messages that do not decode
    world = live_world("a")
    for _ in range(200):
        world.follower.message(b"garbage", world.now)

    # Then one sync comes soon
    world.until(lambda: world.fresh, 1.0)
    assert world.follower.replica.resyncs == 200


def test_resyncs_follow_each_other_with_a_pause() -> None:
    world = live_world("a")
    syncs = 0
    end = world.now + 5.0
    while world.now < end:
        world.follower.resync("a reason", world.now)
        syncs += sum(script_of(request) == "snapshot" for request in world.poll())
        world.advance(0.01)

    assert 15 <= syncs <= 21


def test_a_sync_that_waits_for_a_lost_message_begins_anew(world: FollowerWorld) -> None:
    # Given a page ahead of the messages, one of which was lost
    world.server.put("a")
    world.messages.clear()
    world.follower.subscribed(world.now)
    world.answer(only(world.poll(), "snapshot"))
    world.server.put("b", published=False)
    world.run()
    assert world.follower.replica.awaited is not None

    # Then it waits a second, and no longer
    begun = world.now
    world.until(lambda: world.fresh, 3.0)
    assert 1.0 <= world.now - begun <= 1.5
    assert sorted(world.follower.sessions) == ["a", "b"]


def test_after_a_crash_every_call_is_sent_again() -> None:
    # Given calls in flight whose answers are lost
    world = live_world("a")
    world.look_up("a")
    world.advance(1.0)
    world.poll()

    world.follower.crashed(world.now)

    assert not world.fresh
    world.until(lambda: world.fresh, 2.0)
    world.until(lambda: world.server.touches, 2.0)
    assert [list(touch) for touch in world.server.touches] == [["a"]]


def test_a_back_off_doubles_up_to_a_second_and_restarts_after_a_success() -> None:
    backoff = Backoff()
    waits = [backoff.failed() for _ in range(20)]

    assert waits[0] <= 0.02
    assert all(0.5 <= wait <= 1.0 for wait in waits[8:])
    backoff.succeeded()
    assert backoff.failed() <= 0.02


# Sleep


def test_an_idle_follower_sleeps() -> None:
    # Given a driver that sleeps until `wake_at`
    world = live_world("a")
    polls = 0
    end = world.now + 10.0
    while world.now < end:
        polls += 1
        for request in world.poll():
            world.answer(request)
        wake = world.follower.wake_at(world.now)
        world.advance(max(0.0, wake - world.now))

    # Then it polls for renewals and flushes only: twice for a call, once without one
    assert polls <= 15 * 2 + 10 + 2


@pytest.mark.parametrize("fails", ["join", "renew", "snapshot", "touch"])
def test_a_follower_whose_calls_fail_sleeps_too(fails: str) -> None:
    world = FollowerWorld()
    world.server.put("a")
    world.messages.clear()
    if fails not in ("snapshot", "join"):
        world.go_live()
        world.look_up("a")
    else:
        world.follower.subscribed(world.now)
    polls = 0
    end = world.now + 10.0
    while world.now < end:
        polls += 1
        for request in world.poll():
            if script_of(request) == fails:
                world.fail(request)
            else:
                world.answer(request)
        world.advance(max(0.0, world.follower.wake_at(world.now) - world.now))

    assert polls <= 250


def test_it_wakes_for_an_expiry(world: FollowerWorld) -> None:
    world.server.put("a", 123)
    world.messages.clear()
    world.go_live()

    assert world.now + 0.120 <= world.follower.wake_at(world.now) <= world.now + 0.123


# Closing


def test_closing_leaves_first_and_then_flushes_everything() -> None:
    keys = [f"k{n}" for n in range(2 * calls.TOUCH_BATCH + 50)]
    world = live_world(*keys)
    for key in keys:
        world.look_up(key)
    fast_path = world.follower.add_fast_path(strict=False)

    requests = world.follower.close(world.now)

    assert [script_of(request) for request in requests] == ["leave", "touch", "touch", "touch"]
    assert not world.fresh
    assert fast_path.valid_until == -inf
    assert not world.follower.drained
    for request in requests:
        world.answer(request)
    assert world.follower.drained
    assert world.server.leases == {}
    assert sum(map(len, world.server.touches)) == len(keys)


def test_a_closed_follower_has_no_calls() -> None:
    world = live_world("a")
    world.follower.close(world.now)

    world.advance(5.0)

    assert world.poll() == []


def test_an_answer_after_closing_changes_nothing() -> None:
    # Given a renewal in flight
    world = live_world("a")
    world.advance(LEASE_S / 3 + 0.01)
    renewal = only(world.poll(), "renew")

    last = world.follower.close(world.now)
    world.answer(renewal)

    assert not world.fresh
    assert not world.follower.drained
    for request in last:
        world.fail(request)
    assert world.follower.drained


def only(requests: list[FollowerRequest], script: str) -> FollowerRequest:
    (request,) = [request for request in requests if script_of(request) == script]
    return request
