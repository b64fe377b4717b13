"""The view's side of the lease protocol: which request is due, and until when the view may call itself fresh.

While a view holds a lease, a write does not return before the view has acknowledged it or the lease has expired.
Requests and answers may be lost or delayed. These rules make the promise hold anyway; the scripts join, renew, ack and
leave keep the other side:

- A lease id is never used again. An answer for another lease, or for one that was given up, is ignored.
- A lease counts from before its request was sent, minus a margin. Redis counts it from when the request arrived.
- The view is fresh only once its chain has passed the head that the join returned. Earlier writes did not wait for it.
- The view acknowledges only what it has applied, and only changes of the lease's epoch. Redis may have been emptied,
  restarted or replaced since the lease was taken, and messages of the old one may still arrive.
- The view gives a lease up before it tells Redis, and at once when it is not LIVE: it may miss a write.

::

    NONE ── join ──> JOINING ── ok ──> HELD ── head passed ──> HELD and fresh
      ^                 │                │
      └─────────────────┴────────────────┘  expired; or given up, and then `leave` goes first

A renewal whose answer is lost may have run, or may run later. Either way Redis keeps the lease at least as long as the
view counts on it. If the answer to a join is lost, the view leaves that lease.

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
from ..protocol.replies import AckReply, LeaseReply
from .chain import Chain, Inconsistent, Position

#: The margin, as a part of the lease. It covers clocks of different rates, small steps of Redis's clock, and the
#: milliseconds that rounding cuts off.
MARGIN = 0.05
#: Parts of the lease: from one renewal to the next, and from a failed request to its next attempt.
_RENEW_AFTER = 1 / 3
_RETRY_AFTER = 1 / 20
#: The step of Redis's clock between two renewals from which the view gives the lease up, as a part of the margin.
_STEP = 1 / 2


class LeaseRequest(Struct, frozen=True, eq=False):
    """A call for the driver to run. Its answer goes to `Lease.answered`; if none comes, call `Lease.failed`."""

    kind: Literal["join", "renew", "ack", "leave"]
    call: Call[Any]
    lease_id: str
    #: local time, from before it was sent
    sent_at: float
    #: what the view has applied, as the request says
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
        The view's description of itself: JSON, see `replies.ViewInfo`.
    new_id : callable
        Makes the id of a lease; never the same twice.
    margin_s : float, optional
        Seconds by which the view's lease ends before that of Redis: 5 % of the lease by default.
    """

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
        self._closed = False
        #: the replica's chain; None while it is not LIVE
        self._chain: Chain | None = None
        #: the lease that is held or requested, and whether it is held
        self._id: str | None = None
        self._held = False
        #: a lease that was given up, until Redis is told
        self._leaving: str | None = None
        self._in_flight: LeaseRequest | None = None
        self._until = 0.0
        self._renew_at = 0.0
        self._retry_at = 0.0
        #: a head that Redis named, and the revision applied when it was asked, until the chain has passed that head
        self._head: tuple[int, str, int] | None = None
        #: whether the chain has passed a head that Redis named during this lease
        self._reached = False
        self._epoch = ""
        self._ack_wanted = False
        self._acked_rev = 0
        #: the last position that Redis said it has recorded for this lease
        self._recorded: Position | None = None
        #: Redis's clock at the last join or renewal
        self._reading: _Reading | None = None
        self._revocation: str | None = None

    # Queries

    def fresh_until(self) -> float:
        """Local time until which the view may call itself fresh; 0.0 if it may not."""
        return self._until if self._reached else 0.0

    def take_revocation(self) -> str | None:
        """Why the view has to resync, once. The lease is given up already."""
        revocation, self._revocation = self._revocation, None
        return revocation

    @property
    def wake_at(self) -> float:
        """Local time of the next `poll` that may have a request."""
        if self._in_flight is not None:
            return inf
        if self._leaving is not None:
            return self._retry_at
        if self._chain is None or self._closed:
            return inf
        if self._id is None or self._wants_ack(self._chain):
            return self._retry_at
        return max(self._renew_at, self._retry_at)

    # Events

    def at(self, chain: Chain | None) -> None:
        """Take the replica's chain, each time it moves and before the next poll; None while the replica is not LIVE."""
        if chain is not self._chain:
            self._chain = chain
            self._give_up()
        elif chain is not None and self._held:
            self._check(chain)

    def want_ack(self) -> None:
        """A writer waits for a change that was applied."""
        self._ack_wanted = True

    def poll(self, now: float) -> LeaseRequest | None:
        """Take the request that is due at local time `now`, which is before it is sent; one at a time."""
        if self._in_flight is not None or self._closed or now < self._retry_at:
            return None
        if self._leaving is not None:
            return self._leave(now)
        if self._chain is None:
            return None
        rev, write_id = self._chain.position
        if self._id is None:
            self._id = self._new_id()
            call = calls.join(self._keyspace, self._id, self._lease_ms, self._info, rev, write_id)
            return self._send("join", call, self._id, now)
        if now >= self._renew_at:
            epoch = self._epoch if self._recorded == self._chain.position else ""
            call = calls.renew(self._keyspace, self._id, self._lease_ms, rev, write_id, epoch)
            return self._send("renew", call, self._id, now)
        return self.poll_ack(now)

    def poll_early(self, now: float) -> LeaseRequest | None:
        """Take the renewal that is due within half of a renewal interval.

        It goes out with the renewals of other environments, so that they all stay together.
        """
        if not self._held or self._renew_at - now > self._lease_ms / 1000 * _RENEW_AFTER / 2:
            return None
        self._renew_at = min(self._renew_at, now)
        return self.poll(now)

    def poll_ack(self, now: float) -> LeaseRequest | None:
        """Take the acknowledgement that a writer waits for, if no other request is due before it."""
        if self._in_flight is not None or self._closed or now < self._retry_at or now >= self._renew_at:
            return None
        chain = self._chain
        if chain is None or self._id is None or self._leaving is not None:
            return None
        if self._wants_ack(chain):
            call = calls.ack(self._keyspace, self._id, *chain.position, self._epoch)
            return self._send("ack", call, self._id, now)
        self._ack_wanted = False
        return None

    def answered(self, request: LeaseRequest, reply: LeaseReply | AckReply, now: float) -> None:
        """Take the answer to a request of `poll`."""
        if request is not self._in_flight or self._closed:
            return
        self._in_flight = None
        if request.lease_id != self._id:
            return
        if reply.status == "expired":
            self._forget()
            return
        if reply.status not in ("ok", "same"):
            self._revoke(
                "the view lags behind: its subscription may be dead"
                if reply.status == "refused"
                else "Redis has another history than this view has followed"
            )
            return
        assert request.position is not None, "only leave has no position, and no held lease has its id"
        if request.kind == "join":
            assert isinstance(reply, LeaseReply), "only ack answers otherwise"
            self._held = True
            # Writers wait for what comes after this head.
            self._acked_rev = reply.rev
            self._epoch = reply.epoch
        else:
            self._acked_rev = max(self._acked_rev, request.position.rev)
        self._recorded = request.position
        if isinstance(reply, LeaseReply):
            if self._head is None:
                head = request.position if reply.status == "same" else (reply.rev, reply.id)
                self._head = (*head, request.position.rev)
            self._prolong(request, reply, _Reading(reply.now, request.sent_at, now))
        # A step of Redis's clock may have ended the lease.
        if self._held and self._chain is not None:
            self._check(self._chain)

    def failed(self, request: LeaseRequest, now: float) -> None:
        """A request of `poll` gets no answer. It may have run, or may still run."""
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

    # Internals

    def _wants_ack(self, chain: Chain) -> bool:
        return self._ack_wanted and self._held and chain.rev > self._acked_rev

    def _send(
        self,
        kind: Literal["join", "renew", "ack", "leave"],
        call: Call[LeaseReply] | Call[AckReply],
        lease_id: str,
        now: float,
    ) -> LeaseRequest:
        if kind == "renew" or kind == "ack":
            self._ack_wanted = False
        position = None if self._chain is None else self._chain.position
        self._in_flight = LeaseRequest(kind, call, lease_id, now, position)
        return self._in_flight

    def _leave(self, now: float) -> LeaseRequest:
        assert self._leaving is not None, "a lease was given up"
        lease_id, self._leaving = self._leaving, None
        return self._send("leave", calls.leave(self._keyspace, lease_id), lease_id, now)

    def _prolong(self, request: LeaseRequest, reply: LeaseReply, reading: _Reading) -> None:
        """A join or a renewal has run."""
        step_s = _clock_step_s(self._reading, reading)
        self._reading = reading
        if abs(step_s) > self._margin_s * _STEP:
            self._revoke(f"Redis's clock was set by {step_s:+.3f} s")
            return
        self._until = max(self._until, request.sent_at + reply.lease_ms / 1000 - self._margin_s)
        self._renew_at = request.sent_at + self._lease_ms / 1000 * _RENEW_AFTER

    def _check(self, chain: Chain) -> None:
        """Compare the chain with the lease's epoch, and with the head that Redis named."""
        self._check_epoch(chain)
        if self._head is None:
            return
        try:
            passed = chain.passed(*self._head)
        except Inconsistent as exc:
            self._revoke(str(exc))
            return
        if passed is not False:
            # A head that is too old to compare proves nothing; the next renewal names another.
            self._head = None
            self._reached = self._reached or passed is True

    def _check_epoch(self, chain: Chain) -> None:
        # Up to the revision acknowledged, the ids prove the history.
        if not chain.is_of_epoch(self._epoch, after=self._acked_rev):
            self._revoke(f"revision {chain.rev} was published before Redis was emptied, restarted or replaced")

    def _revoke(self, reason: str) -> None:
        self._revocation = reason
        self._give_up()

    def _give_up(self) -> None:
        """Stop relying on the lease. The next poll tells Redis, once."""
        if self._id is not None:
            self._leaving = self._id
        self._forget()

    def _forget(self) -> None:
        self._id = None
        self._held = False
        self._until = 0.0
        self._renew_at = 0.0
        self._head = None
        self._reached = False
        self._epoch = ""
        self._reading = None


def _clock_step_s(before: _Reading | None, after: _Reading) -> float:
    """Seconds by which Redis's clock was certainly set forward between two readings; negative: back."""
    if before is None:
        return 0.0
    passed_s = (after.redis_ms - before.redis_ms) / 1000
    longest_s = after.received_at - before.sent_at
    shortest_s = after.sent_at - before.received_at
    return max(0.0, passed_s - longest_s) or min(0.0, passed_s - shortest_s)
