"""Subscriptions, event by event: the commands that they send, who gets each message, and what they log."""

from __future__ import annotations

import logging
import random
from math import inf
from typing import Any

import pytest

from sessionstore.errors import StoreClosedError
from sessionstore.protocol import calls
from sessionstore.protocol.calls import WriteContext
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.protocol.messages import Applied
from sessionstore.protocol.operations import AwaitApplied
from sessionstore.replica.follower import Follower, FollowerRequest
from sessionstore.replica.replica import State
from sessionstore.replica.subscriptions import HEARTBEAT_S, PONG_WITHIN_S, ConnectionBroken, Subscriptions

from ...support.follower_world import LEASE_MS, UNAVAILABLE, Server, script_of
from ...support.replica_world import KEYS

OTHER_KEYS = EnvironmentKeyspace("ss", "checkout", "production")


class SubscriptionsWorld:
    """A hub, and a Redis for each environment, linked in memory."""

    def __init__(self) -> None:
        self.now = 100.0
        self.subscriptions = Subscriptions(random.Random(0))
        self.contexts = {
            keys.changes: WriteContext(keys, 86_400_000, LEASE_MS, lambda: self.now) for keys in (KEYS, OTHER_KEYS)
        }
        self.servers: dict[str, Server] = {}
        for channel in self.contexts:
            server = self.servers[channel] = Server()
            server.publish = lambda payload, channel=channel: self.receive("smessage", channel, payload)  # type: ignore[misc]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for server in self.servers.values():
            server.now += round(seconds * 1000)

    def follow(self, keys: EnvironmentKeyspace = KEYS) -> Follower:
        return self.subscriptions.follow(self.contexts[keys.changes], "{}", self.now)

    def receive(self, *reply: Any) -> None:
        self.subscriptions.received(list(reply), self.now)

    def commands(self) -> list[tuple[str, ...]]:
        return self.subscriptions.commands_due(self.now)

    def confirm(self) -> list[tuple[str, ...]]:
        """Take the commands that are due, and let Redis answer at once."""
        commands = self.commands()
        for name, *arguments in commands:
            if name == "PING":
                self.receive("pong", "")
            for channel in arguments:
                self.receive(name.lower(), channel, 1)
        return commands

    def run(self) -> list[str]:
        ran: list[str] = []
        while requests := self.subscriptions.poll(self.now):
            for request in requests:
                ran.append(script_of(request))
                self.answer(request)
        return ran

    def answer(self, request: FollowerRequest) -> None:
        server = self.servers[request.follower.keyspace.changes]
        self.subscriptions.answered(request, server.run(request.call), self.now)

    def go_live(self, keys: EnvironmentKeyspace = KEYS) -> Follower:
        follower = self.follow(keys)
        if self.subscriptions.commands_due_at() == inf:
            self.subscriptions.connected(self.now)
        self.confirm()
        self.run()
        assert follower.replica.chain is not None
        return follower


@pytest.fixture
def world() -> SubscriptionsWorld:
    return SubscriptionsWorld()


# Subscribing


def test_nothing_is_wanted_at_first(world: SubscriptionsWorld) -> None:
    assert not world.subscriptions.wanted
    world.follow()
    assert world.subscriptions.wanted


def test_one_command_subscribes_to_all_channels(world: SubscriptionsWorld) -> None:
    world.follow()
    world.follow(OTHER_KEYS)
    world.subscriptions.connected(world.now)

    assert world.commands() == [("SSUBSCRIBE", KEYS.changes), ("SSUBSCRIBE", OTHER_KEYS.changes)]
    assert world.commands() == []


def test_without_a_connection_no_command_is_due(world: SubscriptionsWorld) -> None:
    world.follow()

    assert world.commands() == []
    assert world.subscriptions.commands_due_at() == inf


def test_a_sync_begins_with_the_confirmation(world: SubscriptionsWorld) -> None:
    follower = world.follow()
    world.subscriptions.connected(world.now)
    world.commands()
    assert state_of(follower) is State.EMPTY

    world.receive("ssubscribe", KEYS.changes, 1)

    assert state_of(follower) is State.SYNCING


def test_channel_names_may_be_bytes(world: SubscriptionsWorld) -> None:
    follower = world.follow()
    world.subscriptions.connected(world.now)
    world.commands()

    world.receive(b"ssubscribe", KEYS.changes.encode(), 1)

    assert state_of(follower) is State.SYNCING


def test_an_unrequested_confirmation_causes_a_resync(world: SubscriptionsWorld) -> None:
    follower = world.go_live()

    world.receive("ssubscribe", KEYS.changes, 1)

    assert state_of(follower) is State.SYNCING
    assert follower.replica.resyncs == 1
    assert not follower.fresh_until > world.now


def test_an_unrequested_end_of_a_subscription_breaks_the_connection(world: SubscriptionsWorld) -> None:
    world.go_live()

    with pytest.raises(ConnectionBroken, match="ended the subscription"):
        world.receive("sunsubscribe", KEYS.changes, 0)


def test_where_the_primary_may_move_a_heartbeat_asks_for_the_channel(world: SubscriptionsWorld) -> None:
    # Given a heartbeat of a route of a cluster
    world.subscriptions = Subscriptions(random.Random(0), moves=True)
    follower = world.go_live()
    world.advance(HEARTBEAT_S)
    assert world.commands() == [("SSUBSCRIBE", KEYS.changes)]

    # When Redis confirms the subscription once more, then nothing else changes
    world.receive("ssubscribe", KEYS.changes, 1)
    assert state_of(follower) is State.LIVE
    assert follower.replica.resyncs == 0

    # And a further confirmation was not asked for
    world.receive("ssubscribe", KEYS.changes, 1)
    assert state_of(follower) is State.SYNCING


def test_such_a_heartbeat_without_an_answer_breaks_the_connection(world: SubscriptionsWorld) -> None:
    world.subscriptions = Subscriptions(random.Random(0), moves=True)
    world.go_live()
    world.advance(HEARTBEAT_S)
    world.commands()
    world.advance(PONG_WITHIN_S + 0.01)

    with pytest.raises(ConnectionBroken, match="nothing was heard"):
        world.commands()


def test_such_a_heartbeat_of_a_channel_that_is_left_meanwhile(world: SubscriptionsWorld) -> None:
    world.subscriptions = Subscriptions(random.Random(0), moves=True)
    follower = world.go_live()
    world.advance(HEARTBEAT_S)
    world.commands()
    world.subscriptions.unfollow(follower, world.now)
    assert world.commands() == [("SUNSUBSCRIBE", KEYS.changes)]
    second = world.follow()
    assert world.commands() == [("SSUBSCRIBE", KEYS.changes)]

    # The answers come in the order of the commands
    world.receive("ssubscribe", KEYS.changes, 1)
    world.receive("sunsubscribe", KEYS.changes, 0)
    assert state_of(second) is State.EMPTY
    world.receive("ssubscribe", KEYS.changes, 1)
    assert state_of(second) is State.SYNCING


def test_without_a_confirmed_channel_a_heartbeat_is_a_ping(world: SubscriptionsWorld) -> None:
    world.subscriptions = Subscriptions(random.Random(0), moves=True)
    world.follow()
    world.subscriptions.connected(world.now)
    world.commands()
    world.advance(HEARTBEAT_S)

    assert world.commands() == [("PING",)]


def test_views_of_one_environment_share_its_follower_and_the_subscription(world: SubscriptionsWorld) -> None:
    follower = world.go_live()

    assert world.follow() is follower
    assert world.commands() == []


def test_the_last_view_leaves_the_channel(world: SubscriptionsWorld) -> None:
    follower = world.go_live()
    assert world.follow() is follower

    world.subscriptions.unfollow(follower, world.now)
    assert world.commands() == []
    world.subscriptions.unfollow(follower, world.now)

    assert world.commands() == [("SUNSUBSCRIBE", KEYS.changes)]


def test_a_channel_followed_again_before_unsubscribe_needs_no_confirmation(world: SubscriptionsWorld) -> None:
    first = world.go_live()
    world.subscriptions.unfollow(first, world.now)

    second = world.follow()

    assert second is not first
    assert state_of(second) is State.SYNCING
    assert world.commands() == []


def test_a_channel_followed_again_after_unsubscribe_waits_for_its_own_confirmation(world: SubscriptionsWorld) -> None:
    # Given a channel that is being left
    first = world.go_live()
    world.subscriptions.unfollow(first, world.now)
    assert world.commands() == [("SUNSUBSCRIBE", KEYS.changes)]

    # When it is followed again
    second = world.follow()
    assert world.commands() == [("SSUBSCRIBE", KEYS.changes)]

    # Then what arrives late belongs to the old subscription, and the new one counts from its confirmation
    world.servers[KEYS.changes].put("a")
    world.receive("sunsubscribe", KEYS.changes, 0)
    assert state_of(second) is State.EMPTY
    world.receive("ssubscribe", KEYS.changes, 1)
    assert state_of(second) is State.SYNCING
    assert second.replica.resyncs == 0
    assert second.last_error is None


def test_a_message_reaches_its_environment_only(world: SubscriptionsWorld) -> None:
    here, there = world.go_live(), world.go_live(OTHER_KEYS)

    world.servers[KEYS.changes].put("a")

    assert list(here.sessions) == ["a"]
    assert list(there.sessions) == []


@pytest.mark.parametrize("reply", [None, 7, [], ["smessage"], ["surprise", "x", 1], {"a": 1}])
def test_an_unknown_kind_of_message_breaks_the_connection(world: SubscriptionsWorld, reply: Any) -> None:
    world.go_live()

    with pytest.raises(ConnectionBroken):
        world.subscriptions.received(reply, world.now)


# The connection


def test_every_follower_learns_that_the_connection_broke(world: SubscriptionsWorld) -> None:
    here, there = world.go_live(), world.go_live(OTHER_KEYS)

    world.subscriptions.disconnected("the connection to Redis broke", world.now)

    assert here.replica.state is there.replica.state is State.EMPTY
    assert here.last_error == "the connection to Redis broke"
    assert world.commands() == []


def test_a_new_connection_subscribes_and_resyncs(world: SubscriptionsWorld) -> None:
    follower = world.go_live()
    world.subscriptions.disconnected("the connection to Redis broke", world.now)
    world.advance(1.0)
    world.servers[KEYS.changes].put("a", published=False)

    world.subscriptions.connected(world.now)

    assert world.confirm() == [("SSUBSCRIBE", KEYS.changes)]
    world.run()
    assert list(follower.sessions) == ["a"]
    assert follower.fresh_until > world.now


def test_an_idle_connection_has_a_heartbeat(world: SubscriptionsWorld) -> None:
    world.go_live()
    assert world.commands() == []

    world.advance(world.subscriptions.commands_due_at() - world.now)

    assert world.commands() == [("PING",)]
    # One at a time.
    assert world.commands() == []


def test_a_connection_with_traffic_needs_no_heartbeat(world: SubscriptionsWorld) -> None:
    world.go_live()
    for _ in range(20):
        world.advance(0.9 * HEARTBEAT_S)
        world.servers[KEYS.changes].put("a")
        assert world.commands() == []


def test_a_silent_connection_is_broken(world: SubscriptionsWorld) -> None:
    # Given a heartbeat
    world.go_live()
    world.advance(HEARTBEAT_S)
    assert world.commands() == [("PING",)]

    # When nothing is heard for as long as there is time for that
    world.advance(world.subscriptions.commands_due_at() - world.now)

    # Then the connection is broken
    with pytest.raises(ConnectionBroken, match=r"nothing was heard from Redis for 1\.5 s"):
        world.commands()


@pytest.mark.parametrize("reply", [["pong", ""], "PONG", b"PONG", ["smessage", "another channel", b""]])
def test_any_reply_shows_that_the_connection_works(world: SubscriptionsWorld, reply: Any) -> None:
    world.go_live()
    for _ in range(5):
        world.advance(HEARTBEAT_S)
        assert world.commands() == [("PING",)]
        world.advance(0.9 * PONG_WITHIN_S)
        world.subscriptions.received(reply, world.now)
        assert world.commands() == []


@pytest.mark.parametrize("stall_s", [1.2, 1.9, 3.0, 600.0])
def test_a_stall_of_this_process_is_no_silence_of_redis(world: SubscriptionsWorld, stall_s: float) -> None:
    # Given a heartbeat, whose answer comes while this process is stopped
    world.go_live()
    world.advance(HEARTBEAT_S)
    assert world.commands() == [("PING",)]
    world.advance(stall_s)

    # When it continues, and looks at the clock before it reads the answer
    assert world.commands() == []

    # Then the answer counts
    world.receive("pong", "")
    world.advance(0.1)
    assert world.commands() == []


def test_a_connection_that_stays_silent_after_a_stall_is_broken(world: SubscriptionsWorld) -> None:
    world.go_live()
    world.advance(HEARTBEAT_S)
    world.commands()
    world.advance(3.0)
    assert world.commands() == []

    world.advance(world.subscriptions.commands_due_at() - world.now)

    with pytest.raises(ConnectionBroken):
        world.commands()


def test_a_heartbeat_follows_a_stall(world: SubscriptionsWorld) -> None:
    world.go_live()
    world.commands()

    world.advance(600.0)

    assert world.commands() == [("PING",)]


# Waiting writers


def test_a_waiter_is_woken_by_its_revision_or_a_later_one(world: SubscriptionsWorld) -> None:
    woken: list[Applied | None] = []
    world.subscriptions.expect(AwaitApplied(KEYS, 7, 1.0), woken.append, world.now)
    world.subscriptions.connected(world.now)
    assert world.commands() == [("SSUBSCRIBE", KEYS.applied)]

    # What was published before the confirmation is missed: it has to look for itself.
    world.receive("ssubscribe", KEYS.applied, 1)
    assert woken == [None]

    world.subscriptions.expect(AwaitApplied(KEYS, 7, 1.0), woken.append, world.now)
    for rev in (5, 6, 8, 9):
        world.receive("smessage", KEYS.applied, b'{"rev":%d,"live":2,"expired":0,"epoch":"e"}' % rev)

    assert [getattr(applied, "rev", None) for applied in woken] == [None, 8]


def test_a_waiter_that_gives_up_is_not_woken(world: SubscriptionsWorld) -> None:
    woken: list[Applied | None] = []
    step = AwaitApplied(KEYS, 7, 1.0)
    waiter = world.subscriptions.expect(step, woken.append, world.now)

    world.subscriptions.forget(step, waiter)
    world.subscriptions.forget(step, waiter)
    subscribe_to_applied(world)
    world.receive("smessage", KEYS.applied, b'{"rev":7,"live":2,"expired":0}')

    assert woken == []


def test_an_undecodable_message_wakes_all_waiters(world: SubscriptionsWorld) -> None:
    woken: list[Applied | None] = []
    subscribe_to_applied(world)
    world.subscriptions.expect(AwaitApplied(KEYS, 7, 1.0), woken.append, world.now)

    world.receive("smessage", KEYS.applied, b"garbage")

    assert woken == [None]


def test_a_message_that_arrives_before_the_writer_waits_counts(world: SubscriptionsWorld) -> None:
    # Given a message that comes before the writer waits for it
    woken: list[Applied | None] = []
    subscribe_to_applied(world)
    world.receive("smessage", KEYS.applied, b'{"rev":7,"live":2,"expired":0}')
    world.advance(0.01)

    # Then it counts if it arrived after the write was sent
    world.subscriptions.expect(AwaitApplied(KEYS, 7, 1.0, 0.02), woken.append, world.now)
    assert [applied.rev for applied in woken if applied] == [7]

    # And not otherwise
    world.subscriptions.expect(AwaitApplied(KEYS, 8, 1.0, 0.02), woken.append, world.now)
    world.subscriptions.expect(AwaitApplied(KEYS, 7, 1.0, 0.005), woken.append, world.now)
    assert len(woken) == 1


def test_a_remembered_message_is_dropped_with_the_connection(world: SubscriptionsWorld) -> None:
    woken: list[Applied | None] = []
    subscribe_to_applied(world)
    world.receive("smessage", KEYS.applied, b'{"rev":7,"live":2,"expired":0}')
    world.subscriptions.disconnected("a reason", world.now)

    world.subscriptions.expect(AwaitApplied(KEYS, 7, 1.0, 1.0), woken.append, world.now)

    assert woken == []


def test_the_channels_of_waiters_stay_subscribed_up_to_a_bound(world: SubscriptionsWorld) -> None:
    world.subscriptions.connected(world.now)
    for number in range(300):
        step = AwaitApplied(EnvironmentKeyspace("ss", "checkout", f"e{number}"), 1, 1.0)
        world.subscriptions.forget(step, world.subscriptions.expect(step, lambda applied: None, world.now))
        world.confirm()

    subscribed = sum(
        world.subscriptions.is_subscribed(EnvironmentKeyspace("ss", "checkout", f"e{n}").applied) for n in range(300)
    )
    assert subscribed == 256


def test_closing_wakes_all_waiters(world: SubscriptionsWorld) -> None:
    woken: list[Applied | None] = []
    world.subscriptions.expect(AwaitApplied(KEYS, 7, 1.0), woken.append, world.now)

    world.subscriptions.close(world.now)

    assert woken == [None]
    assert not world.subscriptions.wanted


# Leaving


def test_the_last_calls_of_a_view_come_from_poll(world: SubscriptionsWorld) -> None:
    follower = world.go_live()
    world.subscriptions.unfollow(follower, world.now)

    assert world.subscriptions.wake_at(world.now) <= world.now
    assert world.run() == ["leave"]
    assert follower.drained
    assert world.servers[KEYS.changes].leases == {}


def test_a_leave_follows_the_join_in_flight(world: SubscriptionsWorld) -> None:
    # Given a view that is closed while its join is on its way
    follower = world.follow()
    world.subscriptions.connected(world.now)
    world.confirm()
    requests = world.subscriptions.poll(world.now)
    while script_of(requests[0]) != "join":
        for request in requests:
            world.answer(request)
        requests = world.subscriptions.poll(world.now)
    world.subscriptions.unfollow(follower, world.now)

    # When the driver runs them, one after the other
    world.answer(requests[0])
    world.run()

    # Then no lease is left over
    assert world.servers[KEYS.changes].leases == {}
    assert follower.drained


def test_if_redis_is_unreachable_the_last_calls_are_dropped(
    world: SubscriptionsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "TOUCH_BATCH", 10)
    server = world.servers[KEYS.changes]
    for number in range(500):
        server.put(f"k{number}", published=False)
    follower = world.go_live()
    for session in follower.sessions.values():
        follower.touch(session, world.now)
    world.subscriptions.unfollow(follower, world.now)

    requests = world.subscriptions.poll(world.now)
    assert [script_of(request) for request in requests] == ["leave", *["touch"] * 15]
    assert world.subscriptions.draining
    for request in requests:
        world.subscriptions.failed(request, UNAVAILABLE, world.now)

    assert not world.subscriptions.draining
    assert follower.drained


def test_a_view_of_a_closed_store_has_no_last_calls(world: SubscriptionsWorld) -> None:
    follower = world.go_live()
    world.subscriptions.close(world.now)
    world.run()

    world.subscriptions.unfollow(follower, world.now)

    assert not world.subscriptions.draining
    assert follower.drained


def test_leases_of_several_environments_are_renewed_together(world: SubscriptionsWorld) -> None:
    # Given views that were opened at different times
    world.go_live()
    world.advance(0.5 * LEASE_MS / 3000)
    world.go_live(OTHER_KEYS)

    polls = []
    for _ in range(300):
        world.advance(0.01)
        ran = world.run()
        if ran:
            polls.append(ran)

    # Then each round trip is for both
    assert polls == [["renew", "renew"]] * len(polls)
    assert len(polls) == pytest.approx(3 / (LEASE_MS / 3000), abs=1)


def test_after_a_crash_every_call_is_sent_again(world: SubscriptionsWorld) -> None:
    follower = world.go_live()
    world.advance(1.0)
    assert world.subscriptions.poll(world.now)

    world.subscriptions.crashed(world.now)
    world.advance(1.0)
    world.run()

    assert follower.fresh_until > world.now
    assert follower.replica.resyncs == 1


# The log

UNCHECKED = (
    "Project 'checkout' has registered no environment, so the name 'staging' is not checked; apply a catalog to "
    "register it."
)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "sessionstore")
    return caplog


def test_it_logs_once_that_a_view_is_out_of_touch_and_in_touch_again(
    world: SubscriptionsWorld, log: pytest.LogCaptureFixture
) -> None:
    follower = world.go_live()
    assert messages(log) == ["The view of checkout/staging is in touch, at revision 0.", UNCHECKED]

    for _ in range(5):
        world.subscriptions.disconnected("the connection to Redis broke", world.now)
        world.advance(0.1)
        for request in world.subscriptions.poll(world.now):
            world.subscriptions.failed(request, UNAVAILABLE, world.now)
    assert messages(log) == [
        "The view of checkout/staging is out of touch and serves what it has: the connection to Redis broke."
    ]

    world.subscriptions.connected(world.now)
    world.confirm()
    world.advance(1.0)
    world.run()
    assert follower.fresh_until > world.now
    # A log of warnings shows both.
    assert log.records[-1].levelno == logging.WARNING
    assert messages(log) == ["The view of checkout/staging is in touch, at revision 0."]


def test_it_logs_that_a_view_was_never_in_touch(world: SubscriptionsWorld, log: pytest.LogCaptureFixture) -> None:
    world.follow()
    world.subscriptions.poll(world.now)
    assert messages(log) == []

    for _ in range(3):
        world.subscriptions.disconnected("the connection to Redis broke", world.now)

    assert messages(log) == [
        "The view of checkout/staging has never been in touch, and serves nothing: the connection to Redis broke."
    ]


def test_it_logs_that_the_lease_ran_out(world: SubscriptionsWorld, log: pytest.LogCaptureFixture) -> None:
    follower = world.go_live()
    messages(log)

    world.advance(LEASE_MS / 1000)
    world.subscriptions.poll(world.now)

    assert messages(log) == [
        "The view of checkout/staging is out of touch and serves what it has: "
        "its lease ran out before it could be renewed."
    ]
    assert follower.last_error == "its lease ran out before it could be renewed"


def test_it_logs_the_latest_reason(world: SubscriptionsWorld, log: pytest.LogCaptureFixture) -> None:
    # Given trouble that is over
    world.go_live()
    world.subscriptions.disconnected("the connection to Redis broke", world.now)
    world.subscriptions.connected(world.now)
    world.confirm()
    world.advance(1.0)
    world.run()
    messages(log)

    # When the lease runs out
    world.advance(LEASE_MS / 1000)
    world.subscriptions.poll(world.now)

    assert "its lease ran out" in messages(log)[0]


def test_it_logs_once_that_touches_fail(world: SubscriptionsWorld, log: pytest.LogCaptureFixture) -> None:
    server = world.servers[KEYS.changes]
    server.put("a", published=False)
    follower = world.go_live()
    messages(log)
    follower.touch(follower.sessions["a"], world.now)

    for _ in range(100):
        world.advance(0.1)
        for request in world.subscriptions.poll(world.now):
            if script_of(request) == "touch":
                world.subscriptions.failed(request, UNAVAILABLE, world.now)
            else:
                world.answer(request)

    assert messages(log) == [
        "The view of checkout/staging can't record look-ups in Redis: Redis can't be reached; nothing "
        "was changed, try again later. It tries again."
    ]


def state_of(follower: Follower) -> State:
    return follower.replica.state


def messages(log: pytest.LogCaptureFixture) -> list[str]:
    """The messages since the last call."""
    texts = [record.getMessage() for record in log.records]
    log.clear()
    return texts


def subscribe_to_applied(world: SubscriptionsWorld) -> None:
    step = AwaitApplied(KEYS, 1, 1.0)
    world.subscriptions.forget(step, world.subscriptions.expect(step, lambda applied: None, world.now))
    world.subscriptions.connected(world.now)
    world.confirm()
    assert world.subscriptions.is_subscribed(KEYS.applied)


def test_closed_subscriptions_follow_no_environment(world: SubscriptionsWorld) -> None:
    world.go_live()
    world.subscriptions.close(world.now)

    with pytest.raises(StoreClosedError, match="open another"):
        world.follow()
    assert not world.subscriptions.wanted


def test_after_closing_a_writer_does_not_wait(world: SubscriptionsWorld) -> None:
    world.subscriptions.close(world.now)
    woken: list[Applied | None] = []

    waiter = world.subscriptions.expect(AwaitApplied(KEYS, 7, 1.0, 0.0), woken.append, world.now)
    world.subscriptions.forget(AwaitApplied(KEYS, 7, 1.0, 0.0), waiter)

    assert woken == [None]
    assert not world.subscriptions.wanted


def test_a_connection_without_published_changes_is_replaced(world: SubscriptionsWorld) -> None:
    # Given a connection that answers heartbeats, on a server that has lost its subscription
    follower = world.go_live()
    server = world.servers[KEYS.changes]
    publish, server.publish = server.publish, lambda payload: None

    # When changes are published, then the view resyncs in vain
    def live_on() -> None:
        for number in range(20):
            server.put(f"s{number}")
            world.advance(LEASE_MS / 3000)
            world.confirm()
            world.run()

    with pytest.raises(ConnectionBroken, match="did not arrive"):
        live_on()
    assert follower.replica.resyncs <= 3

    # And another link heals it
    world.subscriptions.disconnected("broken", world.now)
    server.publish = publish
    world.subscriptions.connected(world.now)
    world.advance(1.0)
    world.confirm()
    world.run()
    assert follower.replica.chain is not None
    live_on()
    assert follower.replica.chain is not None


def test_resyncs_for_other_reasons_keep_the_connection(world: SubscriptionsWorld) -> None:
    world.go_live()
    server = world.servers[KEYS.changes]
    for number in range(10):
        # Messages come, and now and then one is lost.
        publish, server.publish = server.publish, lambda payload: None
        server.put("lost")
        server.publish = publish
        server.put(f"s{number}")
        world.advance(1.0)
        world.confirm()
        world.run()
