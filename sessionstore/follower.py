"""One environment as a store follows it: its replica, its lease, and the notes of what was looked up.

No I/O, no clock, no thread: the drivers feed in what arrives and when, run the calls that `poll` asks for, and bring
the answers back. What a look-up reads is kept here as plain attributes, each replaced by one assignment, so that any
thread may read them without a lock: ``sessions``, ``fresh_until`` and the `Bound` of each view.

Local time is in seconds, of a clock that runs on while the process is stopped or the host sleeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from . import commands
from .codec import TouchReply
from .commands import Call, WriteContext
from .errors import SessionStoreError
from .lease import Lease, LeaseRequest, Position
from .messages import Change
from .operations import new_id
from .replica import HeldSession, Replica, Request, State
from .session import Session

__all__ = ["DEFAULT_TOUCH_INTERVAL_S", "Backoff", "Bound", "Follower", "FollowerRequest"]

#: Seconds between two flushes of what was looked up.
DEFAULT_TOUCH_INTERVAL_S = 1.0

#: Seconds after a failure until the next try: at first, and at most. A view has to equal Redis within three seconds of
#: a fault's end.
_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 1.0

#: Seconds that a sync waits for messages that Redis must have published.
_AWAIT_S = 1.0

#: Seconds between two resyncs, where one follows on another.
_RESYNC_PAUSE_S = 0.25


class Backoff:
    """Exponential back-off with jitter, and no limit on tries."""

    __slots__ = ("_next_s", "_rng")

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._next_s = _FIRST_RETRY_S

    def failed(self) -> float:
        """Seconds to wait after one more failure."""
        delay = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(2 * self._next_s, _LAST_RETRY_S)
        return delay

    def succeeded(self) -> None:
        """Begin anew."""
        self._next_s = _FIRST_RETRY_S


@dataclass(slots=True, eq=False)
class Bound:
    """Until when a view's look-ups need no check but the clock: one comparison covers lease and expiry together.

    It is the first expiry among all sessions and, where the view is strict (``on_stale="raise"``), the end of its
    lease.
    """

    strict: bool
    until: float = -inf


@dataclass(frozen=True, slots=True)
class FollowerRequest:
    """A call that the driver is to run, and whose it is."""

    follower: Follower
    call: Call[Any]
    sent_at: float
    #: what it was for: a request of the replica or of the lease, or the touches it carries
    purpose: Request | LeaseRequest | dict[str, float]


class Follower:
    """The state machine that a driver runs for one environment.

    Parameters
    ----------
    context : WriteContext
        The environment's keys, TTL and lease, and the revision that the store knows.
    info : str
        What the view says of itself to operators: JSON.
    touch_interval_s : float
        Seconds between two flushes of what was looked up.
    """

    def __init__(
        self, context: WriteContext, info: str, touch_interval_s: float, rng: random.Random | None = None
    ) -> None:
        keys = context.keys
        self.keys = keys
        self.replica = Replica(keys.project, keys.environment, keys, commands.read_catalog(keys))
        self.lease = Lease(keys, context.lease_ms, info, new_id)
        self.sessions = self.replica.sessions
        #: local time until which a view may call itself fresh
        self.fresh_until = 0.0
        #: session key → local time of its first look-up since the last flush; written by look-ups
        self.seen: dict[str, float] = {}
        self.touch_interval_s = touch_interval_s
        self.last_error: str | None = None
        self.watchers: list[Callable[[str, Session | None], None]] = []
        self._bounds: list[Bound] = []
        self._context = context
        self._backoff = Backoff(rng)
        self._retry_at = 0.0
        self._touch_at = 0.0
        self._touch_in_flight = False
        self._sync_allowed_at = 0.0
        self._synced_at = -inf
        self._resyncs = 0
        #: add this to local ms for an upper bound of Redis time
        self._redis_offset_ms: float | None = None
        #: a head that Redis has named and the chain has yet to reach, and the revision applied when it was asked for
        self._head_to_confirm: tuple[Position, int] | None = None
        #: since when a sync only waits for messages
        self._awaiting_since: float | None = None
        self.closed = False
        self.replica.on_change = self._changed

    # What look-ups read

    def redis_ms(self, now: float) -> float:
        """Redis time at local time `now`, or a little later: a session is never served past its expiry by it."""
        return now * 1000 + (self._redis_offset_ms or 0.0)

    def bound(self, *, strict: bool) -> Bound:
        """Make the bound of one more view."""
        bound = Bound(strict)
        self._bounds.append(bound)
        return bound

    def drop_bound(self, bound: Bound) -> None:
        """A view is closed: its look-ups take the way that says so."""
        self._bounds.remove(bound)
        bound.until = -inf

    def note(self, session_key: str, session: HeldSession, now: float) -> None:
        """Note that a session was looked up. The mark on the session spares later look-ups the note until the flush."""
        if not session.noted:
            self.seen[session_key] = now
            session.mark(noted=True)

    @property
    def live(self) -> bool:
        """Whether the replica follows the chain of changes."""
        return self.replica.state is State.LIVE

    # What arrives

    def subscribed(self, now: float) -> None:
        """The subscription is confirmed, as asked: sync."""
        self.replica.subscribed()
        self._refresh(now)

    def lost(self, reason: str, now: float) -> None:
        """The subscription's link is down."""
        self.last_error = reason
        self.replica.lost(reason)
        self._refresh(now)

    def doubt(self, reason: str, now: float) -> None:
        """Something can't be explained: resync."""
        self.last_error = reason
        self.replica.doubt(reason)
        self._refresh(now)

    def message(self, payload: bytes | str, now: float) -> Change | None:
        """Apply one message of the changes channel."""
        # Until the new state's expiry is known, look-ups check it themselves.
        for bound in self._bounds:
            bound.until = -inf
        change = self.replica.message(payload)
        if change is not None:
            self._context.learn(change.rev, settling=False)
            if change.wait:
                self.lease.want_ack()
            self._confirm_head()
        self._refresh(now)
        return change

    # What is to do

    def poll(self, now: float) -> list[FollowerRequest]:
        """Take the calls that are due; each answer goes to `answered` or `failed`."""
        self._check_awaited(now)
        if self.replica.next_expiry_ms is not None and self.replica.next_expiry_ms <= self.redis_ms(now):
            self.replica.expire(int(self.redis_ms(now)))
        requests: list[FollowerRequest] = []
        lease = None if self.closed else self.lease.poll(now, self._position())
        if lease is not None:
            requests.append(FollowerRequest(self, lease.call, now, lease))
        if now >= self._retry_at and now >= self._sync_allowed_at:
            request = self.replica.poll()
            if request is not None:
                requests.append(FollowerRequest(self, request.call, now, request))
        if now >= self._touch_at and now >= self._retry_at and self.seen and not self._touch_in_flight:
            requests.append(self._touch(now))
        self._refresh(now)
        return requests

    def answered(self, request: FollowerRequest, reply: Any, now: float) -> None:
        """Bring the decoded answer to a request that `poll` returned."""
        redis_now = getattr(reply, "now", None)
        if redis_now is not None:
            self._redis_offset_ms = redis_now + 1 - request.sent_at * 1000
        self._backoff.succeeded()
        purpose = request.purpose
        if isinstance(purpose, Request):
            self.replica.answered(purpose, reply)
        elif isinstance(purpose, LeaseRequest):
            self.lease.answered(purpose, reply, now)
            if purpose.kind in ("join", "renew") and self.lease.head is not None and purpose.position is not None:
                self._head_to_confirm = (self.lease.head, purpose.position.rev)
                self._confirm_head()
            self._take_verdict(now)
        else:
            touched: TouchReply = reply
            self._context.learn(touched.rev, settling=False)
            self._touch_in_flight = False
        self._refresh(now)

    def failed(self, request: FollowerRequest, error: SessionStoreError, now: float) -> None:
        """Say that no answer will come to a request that `poll` returned."""
        self.last_error = str(error)
        self._retry_at = now + self._backoff.failed()
        purpose = request.purpose
        if isinstance(purpose, Request):
            self.replica.failed(purpose)
        elif isinstance(purpose, LeaseRequest):
            self.lease.failed(purpose, now)
            self._take_verdict(now)
        else:
            self._touch_in_flight = False
            for session_key, seen_at in purpose.items():
                self.seen.setdefault(session_key, seen_at)
        self._refresh(now)

    def wake_at(self, now: float) -> float:
        """Local time at which `poll` has to be called again at the latest."""
        wake = self.lease.wake_at
        if self.seen and not self._touch_in_flight:
            wake = min(wake, max(self._touch_at, self._retry_at))
        elif not self._touch_in_flight:
            # What is looked up in the meantime is flushed by then.
            wake = min(wake, max(self._touch_at, now + self.touch_interval_s))
        if self._awaiting_since is not None:
            wake = min(wake, self._awaiting_since + _AWAIT_S)
        elif self.replica.state is State.SYNCING:
            wake = min(wake, max(self._retry_at, self._sync_allowed_at))
        if self.replica.next_expiry_ms is not None:
            wake = min(wake, now + (self.replica.next_expiry_ms - self.redis_ms(now)) / 1000)
        return wake

    def close(self, now: float) -> list[FollowerRequest]:
        """Take the last calls: what was looked up, and the end of the lease. Their answers do not matter."""
        self.closed = True
        self._refresh(now)
        requests = [self._touch(now)] if self.seen else []
        leave = self.lease.close()
        if leave is not None:
            requests.append(FollowerRequest(self, leave.call, now, leave))
        return requests

    # Within

    def _position(self) -> Position | None:
        return Position(self.replica.rev, self.replica.id) if self.live else None

    def _confirm_head(self) -> None:
        """Check a head that a renewal returned against the chain, as soon as it has been reached."""
        if self._head_to_confirm is None or not self.live:
            return
        head, since = self._head_to_confirm
        if self.replica.rev >= head.rev or head.rev < since:
            self._head_to_confirm = None
            self.replica.reached(head.rev, head.id, since=since)

    def _check_awaited(self, now: float) -> None:
        """Doubt a sync that only waits for messages, where they do not come: they may be lost."""
        if self.replica.awaited is None:
            self._awaiting_since = None
        elif self._awaiting_since is None:
            self._awaiting_since = now
        elif now - self._awaiting_since >= _AWAIT_S:
            self._awaiting_since = None
            self.doubt(f"revision {self.replica.awaited} was not published", now)

    def _take_verdict(self, now: float) -> None:
        reason = self.lease.take_verdict()
        if reason is not None:
            self.doubt(reason, now)

    def _touch(self, now: float) -> FollowerRequest:
        batch: dict[str, float] = {}
        # Look-ups go on writing while this runs: popitem is one step, and a copy is not.
        while self.seen and len(batch) < commands.TOUCH_BATCH:
            session_key, batch[session_key] = self.seen.popitem()
            held = self.sessions.get(session_key)
            if held is not None:
                held.mark(noted=False)
        self._touch_in_flight = True
        if not self.seen:
            self._touch_at = now + self.touch_interval_s
        times = {session_key: int(self.redis_ms(seen_at)) for session_key, seen_at in batch.items()}
        return FollowerRequest(self, commands.touch(self._context, new_id(), times), now, batch)

    def _changed(self, session_key: str, session: Session | None) -> None:
        for watcher in self.watchers:
            watcher(session_key, session)

    def _refresh(self, now: float) -> None:
        """Bring what look-ups read up to date."""
        if self.replica.resyncs != self._resyncs:
            self._resyncs = self.replica.resyncs
            self.last_error = self.replica.last_doubt
            self._sync_allowed_at = max(now, self._synced_at + _RESYNC_PAUSE_S)
            self._synced_at = self._sync_allowed_at
        self.lease.at(self._position())
        expiry = self.replica.next_expiry_ms
        horizon = inf if expiry is None else now + (expiry - self.redis_ms(now)) / 1000
        self.fresh_until = self.lease.fresh_until()
        if self.closed:
            horizon = self.fresh_until = -inf
        for bound in self._bounds:
            bound.until = min(horizon, self.fresh_until) if bound.strict else horizon
