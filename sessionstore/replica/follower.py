"""One environment as a store follows it: its replica, its lease, and the pending touches.

No I/O, no clock, no thread: the drivers report what arrives and when, run the calls that `poll` returns, and report the
answers. What a look-up reads is kept here as plain attributes, each replaced by one assignment, so that any thread may
read them without a lock: ``sessions``, ``fresh_until`` and the `FastPath` of each view.

Local time is in seconds, of a clock that runs on while the process is stopped or the host sleeps.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from ..errors import EnvironmentNotFoundError, SessionStoreError, StoreUnavailableError
from ..protocol import calls
from ..protocol.calls import Call, WriteContext
from ..protocol.operations import new_id
from ..protocol.replies import AckReply, TouchReply, unknown_environment
from ..session import MIN_TTL_S
from .held_session import HeldSession
from .lease import Lease, LeaseRequest
from .replica import Replica, State

#: Seconds between two flushes of touches.
DEFAULT_TOUCH_INTERVAL_S = 1.0

#: Seconds from a failure to the next try: at first, and at most. A view must equal Redis within three seconds of a
#: fault's end.
_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 1.0

#: Seconds that a sync waits for messages that Redis must have published.
_AWAIT_S = 1.0

#: Seconds from the last call of a sync to the first of the next one.
_RESYNC_PAUSE_S = 0.25

#: The part of a session's TTL between two flushes, at most: a session in use must not expire between them.
_TOUCH_WITHIN = 1 / 4

#: Ms per second by which Redis's clock may run faster than ours: twice the most that NTP slews.
_DRIFT_MS_PER_S = 1.0


#: Sessions of one touch, each with the local time of its look-up.
Touches = list[tuple[HeldSession, float]]


class Backoff:
    """Exponential back-off with jitter, and no limit on tries. `last_s` is the longest delay, in seconds."""

    def __init__(self, rng: random.Random | None = None, *, last_s: float = _LAST_RETRY_S) -> None:
        self._rng = rng or random.Random()
        self._last_s = last_s
        self._next_s = _FIRST_RETRY_S

    def failed(self) -> float:
        """Seconds to wait after one more failure."""
        delay = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(2 * self._next_s, self._last_s)
        return delay

    def succeeded(self) -> None:
        """Begin anew."""
        self._next_s = _FIRST_RETRY_S


@dataclass(slots=True, eq=False)
class FastPath:
    """Until when a view's look-ups need no check but the clock: one comparison covers lease and expiry together.

    It is the first expiry among all sessions. If the view is strict (``on_stale="raise"``), it is the end of the lease
    if that comes first.
    """

    strict: bool
    valid_until: float = -inf


@dataclass(frozen=True, slots=True, eq=False)
class FollowerRequest:
    """A call for the driver to run, and the follower that takes its answer."""

    follower: Follower
    call: Call[Any]
    sent_at: float
    #: a request of the lease, or the touches that the call carries; None: a call of the replica
    purpose: LeaseRequest | Touches | None


class Follower:
    """The state machine that a driver runs for one environment.

    Parameters
    ----------
    context : WriteContext
        The environment's keys, TTL and lease, and the revision that the store knows.
    info : str
        The view's description of itself for operators: JSON.
    touch_interval_s : float
        Seconds between two flushes of touches.
    """

    def __init__(
        self, context: WriteContext, info: str, touch_interval_s: float, rng: random.Random | None = None
    ) -> None:
        self.keyspace = context.keyspace
        #: the environment, for people
        self.name = str(context.keyspace)
        self.replica = Replica(context.keyspace)
        self.lease = Lease(context.keyspace, context.lease_ms, info, new_id)
        self.sessions = self.replica.sessions
        #: local time until which a view may call itself fresh
        self.fresh_until = 0.0
        #: sessions that were looked up since the last flush, with the time in `touched_at`. Look-ups append to it. A
        #: dict or list would delay some of them while it grows.
        self.touches: deque[HeldSession] = deque()
        # Any session may have the least TTL of its own.
        ttl_s = min(context.ttl_ms / 1000, MIN_TTL_S)
        self.touch_interval_s = min(touch_interval_s, ttl_s * _TOUCH_WITHIN)
        #: why it last stopped being fresh; and why it is not fresh now, or soon will not be
        self.last_error: str | None = None
        self.trouble: str | None = None
        #: why the last flush failed, until one succeeds
        self.touch_error: str | None = None
        self._fast_paths: list[FastPath] = []
        self._context = context
        #: requests without an answer
        self._asked: set[FollowerRequest] = set()
        self._touch_backoff = Backoff(rng)
        self._touch_at = 0.0
        self._touch_in_flight = False
        #: how many of the touches this flush has yet to send
        self._flushing = 0
        self._sync_backoff = Backoff(rng)
        self._sync_at = 0.0
        self._synced_at = -inf
        self._resyncs = 0
        #: add this to local ms for an upper bound of Redis time; as of this local time
        self._redis_offset_ms: float | None = None
        self._offset_at = 0.0
        #: since when a sync has waited for messages only
        self._awaiting_since: float | None = None
        #: resyncs since the last message: a high number shows that messages do not arrive
        self.unheard = 0
        self.closed = False

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

    def touch(self, session: HeldSession, now: float) -> None:
        """Record a look-up. Until the flush, `touched_at` spares later look-ups the same work."""
        if not session.touched_at:
            # Set it first: the flush takes the session out first, and would leave a `touched_at` without an entry.
            session.set_touched_at(now)
            self.touches.append(session)

    @property
    def unregistered(self) -> EnvironmentNotFoundError | None:
        """The error for an unregistered environment of a project that has registered others."""
        # The script that applies a catalog registers the environment, and the one that removes it ends both.
        others = set(self.replica.environments) - {self.keyspace.environment}
        if self.replica.catalog is not None or not others:
            return None
        return unknown_environment(self.keyspace, others)

    # Events of the pub/sub connection

    def subscribed(self, now: float) -> None:
        """Redis confirmed the subscription: sync."""
        self.replica.subscribed()
        self._refresh(now)

    def lost(self, reason: str, now: float) -> None:
        """The connection is down."""
        self.unheard = 0
        self._blame(reason)
        self.replica.lost(reason)
        self._refresh(now)

    def resync(self, reason: str, now: float) -> None:
        """Read everything again: something contradicts what is held."""
        self._blame(reason)
        self.replica.resync(reason)
        self._refresh(now)

    def message(self, payload: bytes | str, now: float) -> None:
        """Apply one message of the changes channel."""
        self._close_fast_paths()
        self.unheard = 0
        change = self.replica.message(payload)
        if change is not None:
            self._context.learn(change.rev, recounting=False)
            if change.wait:
                self.lease.want_ack()
        self._refresh(now)

    def _close_fast_paths(self) -> None:
        """Make look-ups check the expiry themselves, until the first expiry of the next state is known."""
        for fast_path in self._fast_paths:
            fast_path.valid_until = -inf

    # Calls

    def poll(self, now: float) -> list[FollowerRequest]:
        """Take the calls that are due; each answer goes to `answered` or `failed`."""
        if self.closed:
            return []
        self._check_awaited(now)
        if self.replica.next_expiry_ms is not None and self.replica.next_expiry_ms <= self.redis_ms(now):
            self.replica.expire(int(self.redis_ms(now)))
        requests = self._ask_for(self.lease.poll(now), now)
        if now >= self._sync_at:
            call = self.replica.poll()
            if call is not None:
                self._synced_at = now
                requests.append(self._ask(call, now, None))
        if not self._touch_in_flight and now >= self._touch_at:
            requests += self._flush_touches(now)
        self._refresh(now)
        return requests

    def poll_early(self, now: float) -> list[FollowerRequest]:
        """Take the renewal that will soon be due, to send it with others."""
        return [] if self.closed else self._ask_for(self.lease.poll_early(now), now)

    def poll_ack(self, now: float) -> list[FollowerRequest]:
        """Take the acknowledgement that a writer waits for, if the lease has no other request now."""
        return [] if self.closed else self._ask_for(self.lease.poll_ack(now), now)

    def answered(self, request: FollowerRequest, reply: Any, now: float) -> None:
        """Take the decoded answer to a request of `poll`."""
        self._asked.discard(request)
        if not isinstance(reply, AckReply):
            self._read_clock(reply.now, request.sent_at, now)
        purpose = request.purpose
        if purpose is None:
            self._sync_backoff.succeeded()
            self._close_fast_paths()
            self.replica.answered(request.call, reply)
        elif isinstance(purpose, LeaseRequest):
            self.lease.answered(purpose, reply, now)
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
        """A request of `poll` gets no answer."""
        self._asked.discard(request)
        purpose, reason = request.purpose, str(error).rstrip(".")
        if isinstance(purpose, list):
            self._touch_in_flight = False
            self.touch_error = reason
            # The other batches wait too: they would fail as well.
            self._flushing = 0
            self._touch_at = now + self._touch_backoff.failed()
            for session, seen_at in purpose:
                self.touch(session, seen_at)
        else:
            self._blame(reason)
            if purpose is None:
                self._sync_at = now + self._sync_backoff.failed()
                self.replica.failed(request.call)
            else:
                self.lease.failed(purpose, now)
        self._refresh(now)

    def crashed(self, now: float) -> None:
        """Recover from an unexpected error: every request fails, and the replica resyncs."""
        error = StoreUnavailableError("an unexpected error, see the log.")
        for request in tuple(self._asked):
            self.failed(request, error, now)
        self.resync("an unexpected error, see the log", now)

    def wake_at(self, now: float) -> float:
        """Local time of the next `poll` that may have something to do."""
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
        """Take the last calls: they end the lease and flush the touches. Their answers do not matter."""
        self.closed = True
        self._refresh(now)
        requests = self._ask_for(self.lease.close(), now)
        while self.touches:
            requests += self._flush_touches(now)
        return requests

    @property
    def drained(self) -> bool:
        """Whether it is closed, and its last calls have run or failed."""
        return self.closed and not self._asked

    def forget(self, request: FollowerRequest) -> None:
        """One of the last calls will not run."""
        self._asked.discard(request)

    # Internals

    def _blame(self, reason: str) -> None:
        self.last_error = self.trouble = reason

    def _check_awaited(self, now: float) -> None:
        """Resync if a sync waits too long for messages: they may be lost."""
        if self.replica.awaited is None:
            self._awaiting_since = None
        elif self._awaiting_since is None:
            self._awaiting_since = now
        elif now - self._awaiting_since >= _AWAIT_S:
            self._awaiting_since = None
            self.unheard += 1
            self.resync(f"revision {self.replica.awaited} was not published", now)

    def _read_clock(self, redis_now: int, sent_at: float, now: float) -> None:
        """Learn Redis's time from an answer. Answers may be slow, so the lowest upper bound is kept."""
        highest = redis_now + 1 - sent_at * 1000
        lowest = redis_now - now * 1000
        if self._redis_offset_ms is not None:
            aged = self._redis_offset_ms + (now - self._offset_at) * _DRIFT_MS_PER_S
            # Outside these bounds, one of the clocks was set.
            if lowest <= aged < highest:
                return
        self._redis_offset_ms, self._offset_at = highest, now

    def _ask_for(self, request: LeaseRequest | None, now: float) -> list[FollowerRequest]:
        return [] if request is None else [self._ask(request.call, now, request)]

    def _ask(self, call: Call[Any], now: float, purpose: LeaseRequest | Touches | None) -> FollowerRequest:
        request = FollowerRequest(self, call, now, purpose)
        self._asked.add(request)
        return request

    def _flush_touches(self, now: float) -> list[FollowerRequest]:
        """Take the next batch of a flush, or the first one of a new flush, if there are touches."""
        if not self._flushing:
            # Later look-ups belong to the next flush.
            self._flushing = len(self.touches)
        batch: Touches = []
        times: dict[str, int] = {}
        while self._flushing and len(times) < calls.TOUCH_BATCH:
            self._flushing -= 1
            session = self.touches.popleft()
            key, seen_at = session.session_key, session.touched_at
            session.set_touched_at(0.0)
            # A touch can't revive a deleted or expired session. Two threads may have recorded one look-up each.
            if seen_at and key in self.sessions:
                batch.append((session, seen_at))
                times[key] = max(int(self.redis_ms(seen_at)), times.get(key, 0))
        if not self._flushing:
            self._touch_at = now + self.touch_interval_s
        if not batch:
            return []
        self._touch_in_flight = True
        # Name the revision of this replica. The context may know one of a history that Redis has lost since.
        chain = self.replica.chain
        context = replace(self._context, known_rev=0 if chain is None else chain.rev)
        return [self._ask(calls.touch(context, new_id(), times), now, batch)]

    def _refresh(self, now: float) -> None:
        """Update the lease and what look-ups read."""
        self.lease.at(self.replica.chain)
        revocation = self.lease.take_revocation()
        if revocation is not None:
            self.unheard += 1
            self._blame(revocation)
            self.replica.resync(revocation)
            self.lease.at(self.replica.chain)
        if self.replica.resyncs != self._resyncs:
            self._resyncs = self.replica.resyncs
            if self.replica.resync_reason is not None:
                self._blame(self.replica.resync_reason)
            self._sync_at = max(self._sync_at, self._synced_at + _RESYNC_PAUSE_S)
        expiry = self.replica.next_expiry_ms
        horizon = inf if expiry is None else now + (expiry - self.redis_ms(now)) / 1000
        self.fresh_until = self.lease.fresh_until()
        if self.closed:
            horizon = self.fresh_until = -inf
        for fast_path in self._fast_paths:
            fast_path.valid_until = min(horizon, self.fresh_until) if fast_path.strict else horizon
