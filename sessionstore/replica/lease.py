"""The view's side of the lease protocol: which request is due, and until when the view may call itself fresh.

While a view holds a lease, a write does not return before the view has said that it has applied it, or the lease has
run out. For that to hold whatever is lost or delayed, these rules are kept here (the scripts join, renew, ack and leave
keep the other side):

- A lease has an id that is never used again. What was asked under another lease, or is answered after the lease was
  given up, is void.
- A lease counts from before the request was sent, minus a margin, since Redis counts it from when the request arrived.
- The view is fresh only once it has applied the head that the join returned, or a later one: what was written before
  the join did not wait for it.
- Only what is applied is acknowledged, and nothing that was published in another epoch than the lease's: Redis was
  emptied, restarted or replaced in between, and what the old one has published may still be on its way.
- A lease is given up before Redis is told so, and at once when the view is not LIVE: it may miss a write.

::

    NONE ── join ──> JOINING ── ok ──> HELD ── position reached ──> HELD and fresh
      ^                 │                │
      └─────────────────┴────────────────┘  expired; or given up, and then `leave` goes first

A renewal whose answer is lost may have run, or may run later: either way Redis keeps the lease no shorter than the view
counts on it. A join whose answer is lost is left again.

No I/O, no clock, no thread. Local time is in seconds, of a clock that runs on while the process is stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from ..protocol import calls
from ..protocol.calls import Call
from ..protocol.keyspace import EnvironmentKeyspace
from ..protocol.replies import LeaseReply

#: The margin, as a part of the lease: it covers clocks that run at different rates, a step of Redis's clock too small
#: to be noticed, and milliseconds that are cut off.
MARGIN = 0.05
#: The part of the lease after which it is renewed, and that after which a failed request is tried again.
_RENEW_AFTER = 1 / 3
_RETRY_AFTER = 1 / 20
#: The step of Redis's clock between two renewals that gives the lease up, as a part of the margin.
_STEP = 1 / 2
#: Positions remembered until the view has reached the head that it was told.
_MAX_PASSED = 4096


class Position(NamedTuple):
    """A place in the environment's chain of changes: a revision, and the id of the write that made it."""

    rev: int
    id: str


class LeaseRequest(Struct, frozen=True, eq=False):
    """A call that the driver is to run; its answer goes to `Lease.answered`, or its loss to `Lease.failed`."""

    kind: Literal["join", "renew", "ack", "leave"]
    call: Call[Any]
    lease_id: str
    #: local time, from before it was sent
    sent_at: float
    #: what it says that the view has applied
    position: Position | None


class _Reading(NamedTuple):
    """Redis's time, and the local times between which it was read."""

    redis_ms: int
    sent_at: float
    received_at: float


class Lease:
    """The lease of one view on one environment.

    Parameters
    ----------
    keyspace : EnvironmentKeyspace
        The environment.
    lease_ms : int
        How long a lease lasts. All views and writers of one Redis need the same.
    info : str
        What the view says of itself: JSON, see `replies.ViewInfo`.
    new_id : callable
        Makes the id of a lease; never the same twice.
    margin_s : float, optional
        Seconds that the view lets go of a lease earlier than Redis: 5 % of the lease by default.

    Attributes
    ----------
    head : Position or None
        The head that the last join or renewal returned.
    """

    __slots__ = (
        "_ack_wanted",
        "_acked_rev",
        "_closed",
        "_epoch",
        "_epochs",
        "_goal",
        "_held",
        "_id",
        "_in_flight",
        "_info",
        "_keyspace",
        "_lease_ms",
        "_leaving",
        "_margin_s",
        "_new_id",
        "_passed",
        "_position",
        "_reached",
        "_reading",
        "_renew_at",
        "_retry_at",
        "_revocation",
        "_until",
        "head",
    )

    def __init__(
        self,
        keyspace: EnvironmentKeyspace,
        lease_ms: int,
        info: str,
        new_id: Callable[[], str],
        margin_s: float | None = None,
    ) -> None:
        self._keyspace = keyspace
        self._lease_ms = lease_ms
        self._info = info
        self._new_id = new_id
        self._margin_s = lease_ms / 1000 * MARGIN if margin_s is None else margin_s
        self.head: Position | None = None
        self._closed = False
        self._position: Position | None = None
        #: the lease that is held or being taken, and whether it is held
        self._id: str | None = None
        self._held = False
        #: the lease that was given up and that Redis has to be told of
        self._leaving: str | None = None
        self._in_flight: LeaseRequest | None = None
        self._until = 0.0
        self._renew_at = 0.0
        self._retry_at = 0.0
        #: the view is fresh once it has applied this; positions that it has applied since the lease was asked for
        self._goal: Position | None = None
        self._reached = False
        self._passed: dict[int, str] = {}
        #: the lease's epoch, and while it is asked for, those of the changes that were applied since
        self._epoch = ""
        self._epochs: dict[int, str] = {}
        self._ack_wanted = False
        self._acked_rev = 0
        #: of the last join or renewal, to compare Redis's clock with
        self._reading: _Reading | None = None
        self._revocation: str | None = None

    # What the view asks

    def fresh_until(self) -> float:
        """Local time until which the view may call itself fresh at the position last told; 0.0: it may not."""
        return self._until if self._reached else 0.0

    def take_revocation(self) -> str | None:
        """Why the view has to resync; told once. The lease is given up already."""
        revocation, self._revocation = self._revocation, None
        return revocation

    @property
    def wake_at(self) -> float:
        """Local time at which `poll` has to be called again at the latest."""
        if self._in_flight is not None:
            return inf
        if self._leaving is not None:
            return self._retry_at
        if self._position is None or self._closed:
            return inf
        if self._id is None or self._wants_ack(self._position):
            return self._retry_at
        return max(self._renew_at, self._retry_at)

    # What happens

    def at(self, position: Position | None) -> None:
        """Say which position the replica has applied, each time it moves; None while it is not LIVE."""
        last, self._position = self._position, position
        if self._id is None:
            return
        if position is None or (last is not None and position.rev < last.rev):
            self._give_up()
        elif not self._reached:
            if len(self._passed) >= _MAX_PASSED:
                del self._passed[next(iter(self._passed))]
            self._passed[position.rev] = position.id
            self._compare()

    def applied(self, rev: int, epoch: str) -> None:
        """Say that the replica has applied a change, and in which epoch it was published; before it is polled again."""
        if self._held:
            if rev > self._acked_rev:
                self._check_epoch(rev, epoch)
        elif self._id is not None:
            if len(self._epochs) >= _MAX_PASSED:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[rev] = epoch

    def want_ack(self) -> None:
        """Say that a writer waits for a change that was applied."""
        self._ack_wanted = True

    def poll(self, now: float, position: Position | None) -> LeaseRequest | None:
        """Take the request that is due, if any; at most one is under way.

        Parameters
        ----------
        now : float
            Local time, from before the request is sent.
        position : Position or None
            As for `at`.
        """
        self.at(position)
        if self._in_flight is not None or self._closed or now < self._retry_at:
            return None
        if self._leaving is not None:
            return self._leave(now)
        if position is None:
            return None
        if self._id is None:
            self._id = self._new_id()
            self._passed = {position.rev: position.id}
            call = calls.join(self._keyspace, self._id, self._lease_ms, self._info, *position)
            return self._send("join", call, self._id, now, position)
        if now >= self._renew_at:
            call = calls.renew(self._keyspace, self._id, self._lease_ms, *position)
            return self._send("renew", call, self._id, now, position)
        return self.poll_ack(now, position)

    def poll_early(self, now: float, position: Position | None) -> LeaseRequest | None:
        """Take the renewal that will be due before half of the time between two has gone by, if there is one.

        For whoever sends others now: leases of one store that are renewed together go on being renewed together.
        """
        if not self._held or self._renew_at - now > self._lease_ms / 1000 * _RENEW_AFTER / 2:
            return None
        self._renew_at = min(self._renew_at, now)
        return self.poll(now, position)

    def poll_ack(self, now: float, position: Position | None) -> LeaseRequest | None:
        """Take the acknowledgement that a writer waits for, where nothing else is due before it."""
        if self._in_flight is not None or self._closed or now < self._retry_at or now >= self._renew_at:
            return None
        if position is None or self._id is None or self._leaving is not None:
            return None
        if self._wants_ack(position):
            return self._send("ack", calls.ack(self._keyspace, self._id, *position), self._id, now, position)
        self._ack_wanted = False
        return None

    def answered(self, request: LeaseRequest, reply: LeaseReply, now: float) -> None:
        """Bring the answer to a request that `poll` returned."""
        if request is not self._in_flight or self._closed:
            return
        self._in_flight = None
        reading = _Reading(reply.now, request.sent_at, now)
        if request.lease_id != self._id:
            return
        if reply.status == "ok":
            assert request.position is not None, "only leave has no position, and it names no lease that is held"
            if request.kind == "join":
                self._held = True
                # Writers wait for what comes after this head.
                self._acked_rev = reply.rev
                self._epoch = reply.epoch
                epochs, self._epochs = self._epochs, {}
                # Those up to the head are told by their ids.
                for rev, epoch in epochs.items():
                    if rev > reply.rev:
                        self._check_epoch(rev, epoch)
            else:
                self._acked_rev = max(self._acked_rev, request.position.rev)
            if self._held and request.kind != "ack":
                self._prolong(request, reply, reading)
        elif reply.status == "expired":
            self._forget()
        else:
            self._revoke(
                "the view lags behind: its subscription may be dead"
                if reply.status == "refused"
                else f"Redis is at revision {reply.rev} of another history than this view has followed"
            )

    def failed(self, request: LeaseRequest, now: float) -> None:
        """Say that no answer will come to a request that `poll` returned. It may have run all the same, or run yet."""
        if request is not self._in_flight:
            return
        self._in_flight = None
        lease_s = self._lease_ms / 1000
        self._retry_at = now + lease_s * (_RETRY_AFTER if now < self._until else _RENEW_AFTER)
        if request.lease_id != self._id:
            return
        if request.kind == "join":
            self._give_up()
        elif request.kind == "ack":
            self._ack_wanted = True

    def close(self) -> LeaseRequest | None:
        """Give the lease up for good, and take the request that tells Redis. Its answer does not matter."""
        self._closed = True
        self._give_up()
        return None if self._leaving is None else self._leave(0.0)

    # Within

    def _wants_ack(self, position: Position) -> bool:
        return self._ack_wanted and self._held and position.rev > self._acked_rev

    def _send(
        self,
        kind: Literal["join", "renew", "ack", "leave"],
        call: Call[LeaseReply],
        lease_id: str,
        now: float,
        position: Position | None,
    ) -> LeaseRequest:
        if kind == "renew" or kind == "ack":
            self._ack_wanted = False
        self._in_flight = LeaseRequest(kind, call, lease_id, now, position)
        return self._in_flight

    def _leave(self, now: float) -> LeaseRequest:
        assert self._leaving is not None, "a lease was given up"
        lease_id, self._leaving = self._leaving, None
        return self._send("leave", calls.leave(self._keyspace, lease_id), lease_id, now, None)

    def _prolong(self, request: LeaseRequest, reply: LeaseReply, reading: _Reading) -> None:
        """A join or a renewal has run."""
        step_s = _clock_step_s(self._reading, reading)
        self._reading = reading
        if abs(step_s) > self._margin_s * _STEP:
            self._revoke(f"Redis's clock was set by {step_s:+.3f} s")
            return
        self._until = max(self._until, request.sent_at + reply.lease_ms / 1000 - self._margin_s)
        self._renew_at = request.sent_at + self._lease_ms / 1000 * _RENEW_AFTER
        self.head = Position(reply.rev, reply.id)
        if not self._reached:
            # Any head that this lease was told will do: it has held since the first, and the chain leads past that.
            self._goal = self.head
            self._compare()

    def _compare(self) -> None:
        """Whether the view has applied the head that it must, and by the same way."""
        goal = self._goal
        if goal is None:
            return
        passed = self._passed.get(goal.rev)
        if passed == goal.id:
            self._reached = True
            self._passed = {}
        elif passed is not None:
            self._revoke(f"Redis had another revision {goal.rev} than this view has applied")

    def _check_epoch(self, rev: int, epoch: str) -> None:
        if self._held and epoch != self._epoch:
            self._revoke(f"revision {rev} was published before Redis was emptied, restarted or replaced")

    def _revoke(self, reason: str) -> None:
        self._revocation = reason
        self._give_up()

    def _give_up(self) -> None:
        """Count on the lease no more. Redis is told at the next poll, once, as far as it can be reached."""
        if self._id is not None:
            self._leaving = self._id
        self._forget()

    def _forget(self) -> None:
        self._id = None
        self._held = False
        self._until = 0.0
        self._renew_at = 0.0
        self._goal = None
        self._reached = False
        self._passed = {}
        self._epoch = ""
        self._epochs = {}
        self._reading = None


def _clock_step_s(before: _Reading | None, after: _Reading) -> float:
    """Seconds that Redis's clock was certainly set forward (or back, negative) between two readings."""
    if before is None:
        return 0.0
    passed_s = (after.redis_ms - before.redis_ms) / 1000
    longest_s = after.received_at - before.sent_at
    shortest_s = after.sent_at - before.received_at
    return max(0.0, passed_s - longest_s) or min(0.0, passed_s - shortest_s)
