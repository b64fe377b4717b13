"""One environment as a store follows it: its replica, its lease, and the pending touches.

No I/O, no clock, no thread: the drivers feed in what arrives and when, run the calls that `poll` asks for, and bring
the answers back. What a look-up reads is kept here as plain attributes, each replaced by one assignment, so that any
thread may read them without a lock: ``sessions``, ``fresh_until`` and the `FastPath` of each view.

Local time is in seconds, of a clock that runs on while the process is stopped or the host sleeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from ..errors import SessionStoreError, StoreUnavailableError
from ..protocol import calls
from ..protocol.calls import Call, WriteContext
from ..protocol.messages import Change
from ..protocol.operations import new_id
from ..protocol.replies import TouchReply
from ..session import Session
from .held_session import HeldSession
from .lease import Lease, LeaseRequest, Position
from .replica import Replica, Request, State

#: Seconds between two flushes of what was looked up.
DEFAULT_TOUCH_INTERVAL_S = 1.0

#: Seconds after a failure until the next try: at first, and at most. A view has to equal Redis within three seconds of
#: a fault's end.
_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 1.0

#: Seconds that a sync waits for messages that Redis must have published.
_AWAIT_S = 1.0

#: Seconds from the last call of a sync to the first of the next one.
_RESYNC_PAUSE_S = 0.25

#: The part of a session's TTL that may pass between two flushes: one that is in use must not expire between them.
_TOUCH_WITHIN = 1 / 4

#: Ms per second by which Redis's clock may run faster than ours: twice what NTP slews at most.
_DRIFT_MS_PER_S = 1.0


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
class FastPath:
    """Until when a view's look-ups need no check but the clock: one comparison covers lease and expiry together.

    It is the first expiry among all sessions and, where the view is strict (``on_stale="raise"``), the end of its
    lease.
    """

    strict: bool
    valid_until: float = -inf


@dataclass(frozen=True, slots=True, eq=False)
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
        keyspace = context.keyspace
        self.keyspace = keyspace
        #: the environment, for people
        self.name = str(keyspace)
        self.replica = Replica(keyspace.project, keyspace.environment, keyspace, calls.read_catalog(keyspace))
        self.lease = Lease(keyspace, context.lease_ms, info, new_id)
        self.sessions = self.replica.sessions
        #: local time until which a view may call itself fresh
        self.fresh_until = 0.0
        #: session key → local time of its first look-up since the last flush; written by look-ups
        self.touches: dict[str, float] = {}
        self.touch_interval_s = min(touch_interval_s, context.ttl_ms / 1000 * _TOUCH_WITHIN)
        #: why it was last out of touch; and why it is, or will be where nothing helps
        self.last_error: str | None = None
        self.trouble: str | None = None
        #: why the last flush failed, until one succeeds
        self.touch_error: str | None = None
        self.watchers: list[Callable[[str, Session | None], None]] = []
        self._fast_paths: list[FastPath] = []
        self._context = context
        #: requests that have no answer yet
        self._asked: set[FollowerRequest] = set()
        self._touch_backoff = Backoff(rng)
        self._touch_at = 0.0
        self._touch_in_flight = False
        #: session keys that are still to be sent in this flush
        self._flushing: list[str] = []
        self._sync_backoff = Backoff(rng)
        self._sync_at = 0.0
        self._synced_at = -inf
        self._resyncs = 0
        #: add this to local ms for an upper bound of Redis time; as of this local time
        self._redis_offset_ms: float | None = None
        self._offset_at = 0.0
        #: a head that Redis has named and the chain has yet to reach, and the revision applied when it was asked for
        self._head_to_confirm: tuple[Position, int] | None = None
        #: since when a sync only waits for messages
        self._awaiting_since: float | None = None
        #: resyncs since the last message: they were in vain if messages do not come
        self.unheard = 0
        self.closed = False
        self.replica.on_change = self._changed

    # What look-ups read

    def redis_ms(self, now: float) -> float:
        """Redis time at local time `now`, or a little later: a session is never served past its expiry by it."""
        return now * 1000 + (self._redis_offset_ms or 0.0)

    def add_fast_path(self, *, strict: bool) -> FastPath:
        """Make the fast path of one more view."""
        fast_path = FastPath(strict)
        self._fast_paths.append(fast_path)
        return fast_path

    def drop_fast_path(self, fast_path: FastPath) -> None:
        """Close the fast path of a closed view, whose look-ups then raise."""
        self._fast_paths.remove(fast_path)
        fast_path.valid_until = -inf

    def touch(self, session_key: str, session: HeldSession, now: float) -> None:
        """Record a look-up. Until the flush, `touch_pending` spares later look-ups the same work."""
        if not session.touch_pending:
            # The flush clears these in the reverse order: `touch_pending` without a touch would never be cleared.
            session.set_touch_pending(True)
            self.touches[session_key] = now

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
        """The pub/sub connection is down."""
        self.unheard = 0
        self._blame(reason)
        self.replica.lost(reason)
        self._refresh(now)

    def resync(self, reason: str, now: float) -> None:
        """Something can't be explained: resync."""
        self._blame(reason)
        self.replica.resync(reason)
        self._refresh(now)

    def message(self, payload: bytes | str, now: float) -> Change | None:
        """Apply one message of the changes channel."""
        self._close_fast_paths()
        self.unheard = 0
        change = self.replica.message(payload)
        if change is not None:
            self._context.learn(change.rev, recounting=False)
            self.lease.applied(change.rev, change.epoch)
            if change.wait:
                self.lease.want_ack()
            self._confirm_head()
            self._take_revocation(now)
        self._refresh(now)
        return change

    def _close_fast_paths(self) -> None:
        """Have look-ups check the expiry themselves, until that of the state which is about to come is known."""
        for fast_path in self._fast_paths:
            fast_path.valid_until = -inf

    # What is to do

    def poll(self, now: float) -> list[FollowerRequest]:
        """Take the calls that are due; each answer goes to `answered` or `failed`."""
        if self.closed:
            return []
        self._check_awaited(now)
        if self.replica.next_expiry_ms is not None and self.replica.next_expiry_ms <= self.redis_ms(now):
            self.replica.expire(int(self.redis_ms(now)))
        requests: list[FollowerRequest] = []
        lease = self.lease.poll(now, self._position())
        if lease is not None:
            requests.append(self._ask(lease.call, now, lease))
        if now >= self._sync_at:
            request = self.replica.poll()
            if request is not None:
                self._synced_at = now
                requests.append(self._ask(request.call, now, request))
        if not self._touch_in_flight and now >= self._touch_at:
            requests += self._flush_touches(now)
        self._refresh(now)
        return requests

    def poll_early(self, now: float) -> FollowerRequest | None:
        """Take the renewal that will soon be due, to go out with others."""
        lease = None if self.closed else self.lease.poll_early(now, self._position())
        return None if lease is None else self._ask(lease.call, now, lease)

    def poll_ack(self, now: float) -> FollowerRequest | None:
        """Take the acknowledgement that a writer waits for, if it is all that the lease has to ask now."""
        lease = None if self.closed else self.lease.poll_ack(now, self._position())
        return None if lease is None else self._ask(lease.call, now, lease)

    def answered(self, request: FollowerRequest, reply: Any, now: float) -> None:
        """Bring the decoded answer to a request that `poll` returned."""
        self._asked.discard(request)
        self._read_clock(reply.now, request.sent_at, now)
        purpose = request.purpose
        if isinstance(purpose, Request):
            self._sync_backoff.succeeded()
            self._close_fast_paths()
            self.replica.answered(purpose, reply)
        elif isinstance(purpose, LeaseRequest):
            self.lease.answered(purpose, reply, now)
            if purpose.position is not None and reply.status in ("ok", "expired"):
                self._head_to_confirm = (Position(reply.rev, reply.id), purpose.position.rev)
                self._confirm_head()
            self._take_revocation(now)
        else:
            touched: TouchReply = reply
            self._context.learn(touched.rev, recounting=False)
            self._touch_backoff.succeeded()
            self._touch_in_flight = False
            self.touch_error = None
        self._refresh(now)
        if self.fresh_until > now:
            self.trouble = None

    def failed(self, request: FollowerRequest, error: SessionStoreError, now: float) -> None:
        """Say that no answer will come to a request that `poll` returned."""
        self._asked.discard(request)
        purpose = request.purpose
        if isinstance(purpose, Request):
            self._blame(_clause(error))
            self._sync_at = now + self._sync_backoff.failed()
            self.replica.failed(purpose)
        elif isinstance(purpose, LeaseRequest):
            self._blame(_clause(error))
            self.lease.failed(purpose, now)
            self._take_revocation(now)
        else:
            self._touch_in_flight = False
            self.touch_error = _clause(error)
            # All of it waits: where one batch fails, so does the next.
            self._flushing = []
            self._touch_at = now + self._touch_backoff.failed()
            for session_key, seen_at in purpose.items():
                self.touches.setdefault(session_key, seen_at)
        self._refresh(now)

    def crashed(self, now: float) -> None:
        """Recover from an unexpected error: every request fails, and the replica resyncs."""
        error = StoreUnavailableError("an unexpected error, see the log.")
        for request in tuple(self._asked):
            self.failed(request, error, now)
        self.resync("an unexpected error, see the log", now)

    def wake_at(self, now: float) -> float:
        """Local time at which `poll` has to be called again at the latest."""
        wake = self.lease.wake_at
        if not self._touch_in_flight:
            # Even with nothing to flush yet: a look-up can't wake the driver.
            wake = min(wake, self._touch_at)
        if self._awaiting_since is not None:
            wake = min(wake, self._awaiting_since + _AWAIT_S)
        elif self.replica.state is State.SYNCING:
            wake = min(wake, self._sync_at)
        if self.replica.next_expiry_ms is not None:
            wake = min(wake, now + (self.replica.next_expiry_ms - self.redis_ms(now)) / 1000)
        return wake

    def close(self, now: float) -> list[FollowerRequest]:
        """Take the last calls: the end of the lease, and what was looked up. Their answers do not matter."""
        self.closed = True
        self._refresh(now)
        requests = []
        leave = self.lease.close()
        if leave is not None:
            requests.append(self._ask(leave.call, now, leave))
        while self.touches:
            requests += self._flush_touches(now)
        return requests

    @property
    def drained(self) -> bool:
        """Whether it is closed, and its last calls have run or failed."""
        return self.closed and not self._asked

    def forget(self, request: FollowerRequest) -> None:
        """Say that one of the last calls will not be run."""
        self._asked.discard(request)

    # Within

    def _blame(self, reason: str) -> None:
        self.last_error = self.trouble = reason

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
        """Resync when a sync waits for messages that do not come: they may be lost."""
        if self.replica.awaited is None:
            self._awaiting_since = None
        elif self._awaiting_since is None:
            self._awaiting_since = now
        elif now - self._awaiting_since >= _AWAIT_S:
            self._awaiting_since = None
            self.unheard += 1
            self.resync(f"revision {self.replica.awaited} was not published", now)

    def _read_clock(self, redis_now: int, sent_at: float, now: float) -> None:
        """Learn Redis's time from an answer; the lowest upper bound is kept, since one answer may come late."""
        highest = redis_now + 1 - sent_at * 1000
        lowest = redis_now - now * 1000
        if self._redis_offset_ms is not None:
            aged = self._redis_offset_ms + (now - self._offset_at) * _DRIFT_MS_PER_S
            # Out of these bounds, a clock was set.
            if lowest <= aged < highest:
                return
        self._redis_offset_ms, self._offset_at = highest, now

    def _take_revocation(self, now: float) -> None:
        reason = self.lease.take_revocation()
        if reason is not None:
            self.unheard += 1
            self.resync(reason, now)

    def _ask(self, call: Call[Any], now: float, purpose: Request | LeaseRequest | dict[str, float]) -> FollowerRequest:
        request = FollowerRequest(self, call, now, purpose)
        self._asked.add(request)
        return request

    def _flush_touches(self, now: float) -> list[FollowerRequest]:
        """Take the next batch of a flush, or the first one of a new flush; none where there is nothing to send."""
        if not self._flushing:
            # What is looked up from now on belongs to the next flush. Look-ups go on writing: list() is one step.
            self._flushing = list(self.touches)
        batch: dict[str, float] = {}
        while self._flushing and len(batch) < calls.TOUCH_BATCH:
            session_key = self._flushing.pop()
            seen_at = self.touches.pop(session_key, None)
            held = self.sessions.get(session_key)
            # A touch can't revive a deleted or expired session.
            if seen_at is not None and held is not None:
                held.set_touch_pending(False)
                batch[session_key] = seen_at
        if not self._flushing:
            self._touch_at = now + self.touch_interval_s
        if not batch:
            return []
        self._touch_in_flight = True
        times = {session_key: int(self.redis_ms(seen_at)) for session_key, seen_at in batch.items()}
        # What Redis must not be behind is what this replica has applied: writers may know of a history that is lost.
        context = replace(self._context, known_rev=self.replica.rev if self.live else 0)
        return [self._ask(calls.touch(context, new_id(), times), now, batch)]

    def _changed(self, session_key: str, session: Session | None) -> None:
        for watcher in tuple(self.watchers):
            watcher(session_key, session)

    def _refresh(self, now: float) -> None:
        """Bring what look-ups read up to date."""
        if self.replica.resyncs != self._resyncs:
            self._resyncs = self.replica.resyncs
            if self.replica.resync_reason is not None:
                self._blame(self.replica.resync_reason)
            self._head_to_confirm = None
            self._sync_at = max(self._sync_at, self._synced_at + _RESYNC_PAUSE_S)
        self.lease.at(self._position())
        expiry = self.replica.next_expiry_ms
        horizon = inf if expiry is None else now + (expiry - self.redis_ms(now)) / 1000
        self.fresh_until = self.lease.fresh_until()
        if self.closed:
            horizon = self.fresh_until = -inf
        for fast_path in self._fast_paths:
            fast_path.valid_until = min(horizon, self.fresh_until) if fast_path.strict else horizon


def _clause(error: SessionStoreError) -> str:
    """An error as a part of a sentence."""
    return str(error).rstrip(".")
