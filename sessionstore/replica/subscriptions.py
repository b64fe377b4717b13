"""Everything that a store receives over one pub/sub connection: changes for its views, `applied` for its writers.

No I/O, no clock, no thread. In one flow, a driver keeps one connection subscribed to the wanted channels and reports
what it receives. In a second flow it runs the calls that `poll` returns, all that are due together. redis-py's own
PubSub is not used: it reconnects silently and loses the messages in between. Here each connection begins with
`connected`.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from ..errors import CorruptDataError, SessionStoreError, StoreClosedError
from ..protocol.calls import WriteContext
from ..protocol.messages import Applied, decode_applied
from ..protocol.operations import AwaitApplied
from ..session import hash_session_key
from .follower import DEFAULT_TOUCH_INTERVAL_S, Follower, FollowerRequest
from .lease import LeaseRequest
from .replica import State

#: Seconds between two heartbeats on the pub/sub connection.
HEARTBEAT_S = 0.5
#: Seconds from a heartbeat until the connection is dead if nothing arrives.
PONG_WITHIN_S = 1.0
#: Seconds that one round trip, or connecting for pub/sub, may take. After a fault that loses an answer, a view must be
#: right again within three seconds.
CALL_WITHIN_S = 1.0

#: Seconds by which a look at the connection may be late before this process counts as having been stopped or stalled.
_LATE_S = 0.1
#: Resyncs without a message in between after which the connection is not trusted, even if it answers heartbeats.
_MOST_UNHEARD = 2
#: Calls of closed followers that go out together.
_LAST_CALLS = 16
#: Channels of environments with waiting writers that stay subscribed.
_MAX_APPLIED_CHANNELS = 256
#: Corrupt sessions that one line of the log names.
_MOST_NAMED = 10

log = logging.getLogger("sessionstore")


class ConnectionBroken(Exception):  # noqa: N818  never leaves the drivers
    """The connection can't be trusted any more: close it and open another."""


class Waiter(NamedTuple):
    """A writer that waits for a revision; `wake` is called once: with the message, or with None to ask Redis."""

    rev: int
    wake: Callable[[Applied | None], None]


class Subscriptions:
    """The followed environments and waiting writers of one route.

    `moves`: the primary may be elsewhere after a while. Then a heartbeat subscribes once more, which a server refuses
    that does not serve the channel any more, and changes nothing otherwise.
    """

    def __init__(self, rng: random.Random | None = None, *, moves: bool = False) -> None:
        self._rng = rng
        self._moves = moves
        self._followers: dict[str, Follower] = {}
        self._users: dict[str, int] = {}
        self._waiters: dict[str, list[Waiter]] = {}
        #: the last message of each channel with waiters, and when it arrived
        self._applied: dict[str, tuple[Applied, float]] = {}
        #: channels of this connection: requested, confirmed, and the number of outstanding answers to SUNSUBSCRIBE
        self._asked: set[str] = set()
        self._confirmed: set[str] = set()
        self._leaving: Counter[str] = Counter()
        #: heartbeats that subscribed once more, until they are confirmed
        self._beats: Counter[str] = Counter()
        self._closed = False
        self._open = False
        self._pinged_at = -inf
        self._heard_at = -inf
        #: when `commands_due` is due next; at once if messages do not arrive
        self._look_at = inf
        self._deaf = False
        #: calls that are left to run for closed followers
        self._draining: deque[FollowerRequest] = deque()
        #: what the log has said: whether a follower is fresh, and whose touches fail
        self._told_fresh: dict[Follower, bool] = {}
        self._told_untouched: set[Follower] = set()
        self._told_corrupt: dict[Follower, set[str]] = {}
        #: projects without a registered environment
        self._told_unchecked: set[str] = set()

    # Followers and writers

    def follow(
        self, context: WriteContext, info: str, now: float, touch_interval_s: float = DEFAULT_TOUCH_INTERVAL_S
    ) -> Follower:
        """Follow an environment; views of the same one share its follower.

        Raises
        ------
        StoreClosedError
        """
        if self._closed:
            raise StoreClosedError("This store is closed; open another.")
        channel = context.keyspace.changes
        follower = self._followers.get(channel)
        if follower is None:
            follower = self._followers[channel] = Follower(context, info, touch_interval_s, self._rng)
            if channel in self._confirmed:
                follower.subscribed(now)
        follower.touch_interval_s = min(follower.touch_interval_s, touch_interval_s)
        self._users[channel] = self._users.get(channel, 0) + 1
        return follower

    def unfollow(self, follower: Follower, now: float) -> None:
        """Close one view. With the last view of an environment, `poll` returns the calls that leave it."""
        channel = follower.keyspace.changes
        if self._followers.get(channel) is not follower:
            return  # the store was closed before this view
        self._users[channel] -= 1
        if self._users[channel]:
            return
        del self._users[channel], self._followers[channel]
        self._drain(follower, now)

    def expect(self, step: AwaitApplied, wake: Callable[[Applied | None], None], now: float) -> Waiter:
        """Call `wake` once a message says that every view has applied a revision."""
        channel = step.keyspace.applied
        if self._closed:
            wake(None)
            return Waiter(step.rev, wake)
        if channel not in self._waiters and len(self._waiters) >= _MAX_APPLIED_CHANNELS:
            idle = next((name for name, waiters in self._waiters.items() if not waiters), None)
            if idle is not None:
                del self._waiters[idle]
                self._applied.pop(idle, None)
        waiter = Waiter(step.rev, wake)
        applied, at = self._applied.get(channel, (None, 0.0))
        if applied is not None and applied.rev >= step.rev and now - at <= step.sent_s:
            # The views were faster than the answer to the write.
            wake(applied)
            return waiter
        self._waiters.setdefault(channel, []).append(waiter)
        return waiter

    def is_subscribed(self, channel: str) -> bool:
        """Whether this connection has requested a channel, confirmed or not."""
        return channel in self._asked or channel in self._confirmed

    def forget(self, step: AwaitApplied, waiter: Waiter) -> None:
        """The waiter was woken, or has given up."""
        waiters = self._waiters.get(step.keyspace.applied, [])
        if waiter in waiters:
            waiters.remove(waiter)

    # The pub/sub connection

    @property
    def wanted(self) -> bool:
        """Whether any channel is wanted."""
        return bool(self._followers or self._waiters)

    @property
    def followed(self) -> bool:
        """Whether there is a view."""
        return bool(self._followers)

    def connected(self, now: float) -> None:
        """A new connection is open, without subscriptions."""
        self._open = True
        self._forget_connection()
        self._pinged_at = self._heard_at = now
        self._look_at = self.commands_due_at()

    def disconnected(self, reason: str, now: float) -> None:
        """The connection broke, or could not be made."""
        self._open = False
        self._forget_connection()
        for follower in self._followers.values():
            follower.lost(reason, now)
        self._tell(now)

    def commands_due(self, now: float) -> list[tuple[str, ...]]:
        """Take the commands to send now: subscriptions and heartbeats.

        Raises
        ------
        ConnectionBroken
            A heartbeat got no answer in time, or messages do not arrive.
        """
        if not self._open:
            return []
        if self._pinged_at > self._heard_at and now - self._look_at > _LATE_S:
            # This process was stopped or stalled: the answer may have arrived without being read.
            self._pinged_at = max(self._pinged_at, now - PONG_WITHIN_S / 2)
        if self._pinged_at > self._heard_at and now - self._pinged_at > PONG_WITHIN_S:
            raise ConnectionBroken(f"nothing was heard from Redis for {now - self._heard_at:.1f} s")
        if self._deaf:
            raise ConnectionBroken("published changes did not arrive")
        commands: list[tuple[str, ...]] = []
        here = self._asked | self._confirmed
        missing = [name for name in (*self._followers, *self._waiters) if name not in here]
        if missing:
            self._asked.update(missing)
            # One command each: in a cluster, the channels of one command must share a slot.
            commands += [("SSUBSCRIBE", name) for name in missing]
        surplus = [name for name in self._confirmed if name not in self._followers and name not in self._waiters]
        if surplus:
            self._confirmed.difference_update(surplus)
            self._leaving.update(surplus)
            commands += [("SUNSUBSCRIBE", name) for name in surplus]
        if now - max(self._pinged_at, self._heard_at) >= HEARTBEAT_S and self._pinged_at <= self._heard_at:
            self._pinged_at = now
            commands.append(self._heartbeat())
        self._look_at = self.commands_due_at()
        return commands

    def commands_due_at(self) -> float:
        """Local time of the next `commands_due` that may have something to do."""
        if not self._open:
            return inf
        if self._deaf:
            return -inf
        if self._pinged_at > self._heard_at:
            return self._pinged_at + PONG_WITHIN_S + 0.001
        return max(self._pinged_at, self._heard_at) + HEARTBEAT_S

    def received(self, reply: Any, now: float) -> None:
        """Take one reply of the connection, in RESP2's shape.

        Raises
        ------
        ConnectionBroken
            It is not a reply that a subscription receives, or Redis has ended a subscription.
        redis.RedisError
            It is an error reply.
        """
        self._heard_at = now
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply, list) or len(reply) < 2:
            if isinstance(reply, bytes | str):
                return  # a pong without an array
            raise ConnectionBroken("Redis sent an unknown kind of message")
        kind, channel = _text(reply[0]), _text(reply[1])
        if kind == "smessage":
            self._message(channel, reply[2], now)
        elif kind == "ssubscribe":
            self._subscribed(channel, now)
        elif kind == "sunsubscribe":
            self._unsubscribed(channel)
        elif kind != "pong":
            raise ConnectionBroken("Redis sent an unknown kind of message")

    # The calls

    def poll(self, now: float) -> list[FollowerRequest]:
        """Take the calls that are due, of all environments together. Run them in this order."""
        requests = [self._draining.popleft() for _ in range(min(_LAST_CALLS, len(self._draining)))]
        for follower in self._followers.values():
            requests += follower.poll(now)
        if len(self._followers) > 1 and any(map(_renews, requests)):
            # Otherwise each environment would take a round trip of its own.
            for follower in self._followers.values():
                requests += follower.poll_early(now)
        self._tell(now)
        return requests

    @property
    def syncing(self) -> bool:
        """Whether a follower reads a snapshot. Then `poll` may return more calls before the last ones are answered."""
        return any(follower.replica.state is State.SYNCING for follower in self._followers.values())

    def poll_acks(self, now: float) -> list[FollowerRequest]:
        """Take the acknowledgements that are due. They may run beside the calls of `poll`, and more than once."""
        return [ack for follower in self._followers.values() for ack in follower.poll_ack(now)]

    def answered(self, request: FollowerRequest, reply: Any, now: float) -> None:
        """Take the answer to a request."""
        request.follower.answered(request, reply, now)
        self._tell(now)

    def failed(self, request: FollowerRequest, error: SessionStoreError, now: float) -> None:
        """A request gets no answer."""
        follower = request.follower
        follower.failed(request, error, now)
        if follower.closed:
            self._abandon(lambda other: other is follower)
        self._tell(now)

    def crashed(self, now: float) -> None:
        """Recover from an unexpected error: every request fails, and every follower resyncs."""
        self._abandon(lambda other: True)
        for follower in self._followers.values():
            follower.crashed(now)
        self._tell(now)

    def wake_at(self, now: float) -> float:
        """Local time of the next `poll` that may have something to do."""
        if self._draining:
            return now
        return min((follower.wake_at(now) for follower in self._followers.values()), default=inf)

    def close(self, now: float) -> None:
        """Close for good; `poll` returns the calls that leave every environment."""
        self._closed = True
        for follower in self._followers.values():
            self._drain(follower, now)
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.wake(None)
        self._followers.clear()
        self._users.clear()
        self._waiters.clear()
        self._applied.clear()

    @property
    def draining(self) -> bool:
        """Whether calls are left to run for closed followers."""
        return bool(self._draining)

    # Internals

    def _drain(self, follower: Follower, now: float) -> None:
        self._draining += follower.close(now)
        self._told_fresh.pop(follower, None)
        self._told_untouched.discard(follower)
        self._told_corrupt.pop(follower, None)

    def _abandon(self, whose: Callable[[Follower], bool]) -> None:
        """Drop the calls that are left: a lease that nobody leaves expires by itself."""
        for request in self._draining:
            if whose(request.follower):
                request.follower.forget(request)
        self._draining = deque(request for request in self._draining if not whose(request.follower))

    def _message(self, channel: str, payload: bytes | str, now: float) -> None:
        follower = self._followers.get(channel)
        if follower is not None:
            follower.message(payload, now)
            return
        waiters = self._waiters.get(channel)
        if waiters is None:
            return
        try:
            applied: Applied | None = decode_applied(payload)
        except CorruptDataError:
            applied = None
        if applied is not None:
            self._applied[channel] = (applied, now)
        for waiter in tuple(waiters):
            if applied is None or applied.rev >= waiter.rev:
                waiters.remove(waiter)
                waiter.wake(applied)

    def _heartbeat(self) -> tuple[str, ...]:
        channel = next(iter(self._confirmed), None) if self._moves else None
        if channel is None:
            return ("PING",)
        self._beats[channel] += 1
        return ("SSUBSCRIBE", channel)

    def _subscribed(self, channel: str, now: float) -> None:
        if self._beats[channel]:
            self._beats[channel] -= 1
            return
        asked = channel in self._asked
        self._asked.discard(channel)
        self._confirmed.add(channel)
        if channel in self._followers:
            if asked:
                self._followers[channel].subscribed(now)
            else:
                self._followers[channel].resync("Redis confirmed a subscription that was not requested", now)
        elif channel in self._waiters:
            # Earlier messages are lost: the writers must ask Redis.
            for waiter in self._waiters[channel]:
                waiter.wake(None)
            self._waiters[channel].clear()

    def _unsubscribed(self, channel: str) -> None:
        if not self._leaving[channel]:
            # In a cluster, the channel's slot is served elsewhere from now on.
            raise ConnectionBroken("Redis ended the subscription")
        self._leaving[channel] -= 1

    def _forget_connection(self) -> None:
        self._applied.clear()
        self._asked.clear()
        self._confirmed.clear()
        self._leaving.clear()
        self._beats.clear()
        self._deaf = False

    def _tell(self, now: float) -> None:
        """Log once when a view stops being fresh, and once when it is fresh again."""
        for follower in self._followers.values():
            self._deaf = self._deaf or (self._open and follower.unheard >= _MOST_UNHEARD)
            fresh = follower.fresh_until > now
            told = self._told_fresh.get(follower)
            if fresh and not told:
                # After a loss it is a warning like the loss, so that a log of warnings shows both.
                level = logging.INFO if told is None else logging.WARNING
                log.log(level, "The view of %s is in touch, at revision %d.", follower.name, follower.replica.rev)
                self._told_fresh[follower] = True
                self._tell_registration(follower)
                self._tell_corrupt(follower)
            elif not fresh and (told or (told is None and follower.trouble is not None)):
                reason = follower.trouble or "its lease ran out before it could be renewed"
                serves = "has never been in touch, and serves nothing"
                if told is not None:
                    serves = "is out of touch and serves what it has"
                log.warning("The view of %s %s: %s.", follower.name, serves, reason)
                follower.last_error = reason
                self._told_fresh[follower] = False
            if follower.touch_error is None:
                self._told_untouched.discard(follower)
            elif fresh and follower not in self._told_untouched:
                # While the view is out of touch, this is expected.
                log.warning(
                    "The view of %s can't record look-ups in Redis: %s. It tries again.",
                    follower.name,
                    follower.touch_error,
                )
                self._told_untouched.add(follower)

    def _tell_corrupt(self, follower: Follower) -> None:
        """Say in the log, once, which sessions it can't serve. A log must not hold their keys."""
        corrupt = set(map(hash_session_key, follower.replica.corrupt))
        new = sorted(corrupt - self._told_corrupt.get(follower, set()))
        self._told_corrupt[follower] = corrupt
        if new:
            log.error(
                "The view of %s can't serve sessions whose records in Redis are corrupt: delete them. The SHA-256 of "
                "their keys begin with %s%s.",
                follower.name,
                ", ".join(new[:_MOST_NAMED]),
                " …" if len(new) > _MOST_NAMED else "",
            )

    def _tell_registration(self, follower: Follower) -> None:
        """Say in the log, once, that writes of the environment are refused, or that its name can't be checked."""
        error = follower.unregistered
        if error is not None:
            log.warning("The view of %s serves nothing: %s", follower.name, error)
        elif follower.replica.catalog is None and follower.keyspace.project not in self._told_unchecked:
            self._told_unchecked.add(follower.keyspace.project)
            log.warning(
                "Project %r has registered no environment, so the name %r is not checked; apply a catalog to "
                "register it.",
                follower.keyspace.project,
                follower.keyspace.environment,
            )


def _renews(request: FollowerRequest) -> bool:
    return isinstance(request.purpose, LeaseRequest) and request.purpose.kind == "renew"


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
