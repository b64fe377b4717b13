"""The lease protocol, explored exhaustively: no write returns while a fresh view lacks it, whatever is lost or delayed.

The world has one view with the library's own `Lease` and `Chain`, a model of Redis (test_lease_model.py compares it
with the scripts), a writer with two writes, and a network that delivers each request, answer and message late or never.
The exploration visits every reachable state once, breadth first, so a counterexample is as short as possible. Time
passes in ticks of a third of a lease.

`World.key` identifies a state by what matters for its future. Times count from now and leases go by their age, so the
number of states is finite without a bound on time. Of the chain, the key has the position and, during a join, the epoch
of the changes since. The ids are those of `path`, and when the chain began does not matter.

The same exploration finds each planted flaw below: a test that can't fail proves nothing.
"""

from __future__ import annotations

import copy
import gc
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import pytest

from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.protocol.messages import SessionDeleted
from sessionstore.protocol.replies import AckReply, LeaseReply
from sessionstore.replica.chain import Chain, Inconsistent
from sessionstore.replica.lease import Lease, LeaseRequest

from ...support.lease_model import Rules, ServerModel

TICK_MS = 1000
LEASE_MS = 3 * TICK_MS
#: A lease and a third, and the twentieth by which a renewal may be late.
LONGEST_WAIT_MS = LEASE_MS * (1 + 1 / 3 + 1 / 20)
KEYS = EnvironmentKeyspace("ss", "checkout", "staging")


class Ids:
    """The ids of leases: the world that takes a step sets the next one."""

    next = 0

    def __call__(self) -> str:
        Ids.next += 1
        return f"{Ids.next:06}"


@dataclass(frozen=True)
class Setup:
    """What is explored: the rules, the view, and how much may go wrong."""

    lease: type[Lease] = Lease
    rules: type[Rules] = Rules
    new_id: Callable[[], str] = field(default_factory=Ids)
    margin_s: float = 0.0
    writes: int = 2
    #: requests that may still be in the network although the view has given up on them
    delayed: int = 1
    #: how often the subscription may be lost, the view's clock may fall behind by a tick, and so on
    cuts: int = 1
    drift: int = 0
    timeouts: int = 99
    flushes: int = 0
    failovers: int = 0
    #: the replica lags from the beginning
    lags: bool = False
    #: how often the slot goes to the other of two primaries, and by how much the clock of the second is ahead
    moves: int = 0
    ahead_ms: int = 0
    #: check how long writes wait instead
    bounded: bool = False
    #: the view acknowledges changes that it has only received
    hasty: bool = False


class World:
    """One state of everything."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.server = ServerModel(now=1_000_000, server_run="run1", rules=setup.rules)
        self.server.listeners = 1
        #: the writes that Redis holds, in order
        self.chain: tuple[str, ...] = ()
        #: a replica that lags behind: its state, and its writes
        self.replica: tuple[ServerModel, tuple[str, ...]] | None = None
        if setup.failovers:
            # The replica knows a first lease: without any, it would not know the epoch.
            self.server.rev, self.server.epoch = 0, "run1:000000"
        if setup.lags:
            self.lag()
        self.lease = setup.lease(KEYS, LEASE_MS, "{}", setup.new_id, setup.margin_s)
        self.next_id = 0
        #: how far the view's clock is behind Redis's
        self.skew_ms = 0
        #: the faults that are left, in this order
        self.budget: tuple[int, ...] = (
            setup.cuts,
            setup.drift,
            setup.flushes,
            setup.failovers,
            setup.timeouts,
            setup.moves,
        )
        #: the primary that the epoch names
        self.run_of_epoch = ""
        # The view's subscription, its chain, and all writes that look-ups show
        self.connected = True
        self.live = True
        self.view = Chain(0, "", -1)
        self.path: tuple[str, ...] = ()
        self.lease.at(self.view)
        self.inbox: tuple[tuple[int, str, str, str], ...] = ()
        # Requests that have not run, and the answer to the one that the view waits for
        self.network: tuple[LeaseRequest, ...] = ()
        self.answer: LeaseReply | AckReply | None = None
        # Writes: (revision, id, until when leases may be missing); those that every lease was seen to have applied
        self.waiting: tuple[tuple[int, str, int], ...] = ()
        self.latched: frozenset[str] = frozenset()
        self.returned: tuple[tuple[int, str], ...] = ()
        self.committed = 0

    def copy(self) -> World:
        other = World.__new__(World)
        other.__dict__.update(self.__dict__)
        other.server = self.server.copy()
        other.lease = self.setup.lease.__new__(self.setup.lease)
        other.lease.__dict__.update(self.lease.__dict__)
        return other

    @property
    def local(self) -> float:
        """The view's clock, in seconds."""
        return (self.server.now - self.skew_ms) / 1000

    # Time, and faults

    def tick(self) -> None:
        self.server.now += TICK_MS

    def fall_behind(self) -> None:
        """Time passes, but the view's clock stands still."""
        self.server.now += TICK_MS
        self.skew_ms += TICK_MS

    def cut(self) -> None:
        """The subscription is dead; neither the view nor Redis knows."""
        self.connected = False

    def flush(self) -> None:
        self.server.flush()
        self.chain = ()
        self.forget_writes()

    def lag(self) -> None:
        """The replica receives nothing from now on."""
        self.replica = self.server.copy(), self.chain

    def fail_over(self) -> None:
        """The replica takes over, without listeners. Messages of the old primary may still arrive."""
        assert self.replica is not None
        now = self.server.now
        replica, self.chain = self.replica
        self.server, self.replica = replica.copy(), None
        self.server.now = now
        self.server.server_run = "run2"
        self.server.listeners = 0
        self.connected = False
        self.network = ()
        self.forget_writes()

    def move(self) -> None:
        """The slot goes to the other primary with all its keys. Nobody has noticed, and requests go after it."""
        server, back = self.server, self.server.server_run == "run2"
        shift_ms = -self.setup.ahead_ms if back else self.setup.ahead_ms
        server.server_run = "run1" if back else "run2"
        server.now += shift_ms
        self.skew_ms += shift_ms
        server.listeners = 0
        self.connected = False
        self.waiting = tuple((rev, write_id, settled + shift_ms) for rev, write_id, settled in self.waiting)

    def forget_writes(self) -> None:
        """Views can't serve writes that Redis has lost. Waiting writers fail."""
        self.waiting = ()
        self.returned = tuple(item for item in self.returned if item[1] in self.chain)

    # The writer

    def write(self, write_id: str) -> None:
        self.committed += 1
        reply = self.server.write(write_id, LEASE_MS, known=0)
        self.chain = (*self.chain, write_id)
        self.waiting = (*self.waiting, (reply.rev, write_id, self.server.now + reply.countable_in_ms))
        if not reply.pending:
            self.latched |= {write_id}
        if self.connected and self.live:
            self.inbox += tuple(self.server.published)
            if self.setup.hasty:
                self.accept(*self.server.published[-1])

    def look(self) -> None:
        """The writers that wait look at the leases after each step: a write that may return does."""
        server = self.server
        if self.setup.moves:
            before, self.run_of_epoch = self.run_of_epoch, server.epoch[:4]
            if before not in ("", self.run_of_epoch):
                # Waiting writers fail: the leases may be others.
                self.waiting = ()
        if self.waiting and server._is_of_this_run():
            server._purge()
        floor = server._floor() if server.leases else None
        for rev, write_id, settled in self.waiting:
            if floor is None or floor >= rev:
                self.latched |= {write_id}
            if write_id in self.latched and settled <= server.now:
                self.waiting = tuple(item for item in self.waiting if item[1] != write_id)
                self.returned = (*self.returned, (rev, write_id))

    # The view

    def deliver(self) -> None:
        """The view applies the next message, or finds that it does not continue the chain."""
        (rev, write_id, prev, epoch), *rest = self.inbox
        self.inbox = tuple(rest)
        if not self.setup.hasty and not self.accept(rev, write_id, prev, epoch):
            return
        self.path = (*self.path, write_id)
        self.lease.want_ack()
        self.lease.at(self.view)
        self.take_revocation()

    def accept(self, rev: int, write_id: str, prev: str, epoch: str) -> bool:
        # Copied worlds share the chain, so advance a copy. For the lease it is the same chain.
        chain = copy.copy(self.view)
        chain._ids = chain._ids.copy()
        if self.lease._chain is self.view:
            self.lease._chain = chain
        self.view = chain
        try:
            return chain.accept(SessionDeleted(rev=rev, id=write_id, prev=prev, at=0, epoch=epoch, session_key=""))
        except Inconsistent:
            self.become_inconsistent()
            return False

    def become_inconsistent(self) -> None:
        self.live = False
        self.inbox = ()
        self.lease.at(None)

    def resync(self) -> None:
        """A new subscription, and a snapshot."""
        self.live = self.connected = True
        self.server.listeners = 1
        self.view = Chain(self.server.rev or 0, self.server.id, -1)
        self.path = self.chain
        self.lease.at(self.view)

    def poll(self) -> bool:
        request = self.lease.poll(self.local)
        if request is None:
            return False
        self.network = (*self.network, request)
        self.answer = None
        return True

    def receive(self) -> None:
        assert self.answer is not None
        request = self.lease._in_flight
        assert request is not None
        reply, self.answer = self.answer, None
        self.lease.answered(request, reply, self.local)
        self.take_revocation()

    def give_up_waiting(self) -> None:
        """No answer comes in time. The request may still arrive."""
        request = self.lease._in_flight
        assert request is not None
        self.answer = None
        self.lease.failed(request, self.local)
        self.take_revocation()
        late = [item for item in self.network if item is not request]
        if request in self.network:
            late.append(request)
        # Requests beyond the bound are lost.
        self.network = tuple(late[len(late) - self.setup.delayed :]) if self.setup.delayed else ()

    def take_revocation(self) -> None:
        if self.lease.take_revocation() is not None:
            self.become_inconsistent()

    # The network

    def run(self, index: int) -> None:
        """Redis runs a request."""
        request = self.network[index]
        self.network = self.network[:index] + self.network[index + 1 :]
        server, position = self.server, request.position
        if request.kind == "leave":
            reply: LeaseReply | AckReply = server.leave(request.lease_id)
        else:
            assert position is not None
            epoch = str(request.call.args[-1])
            if request.kind == "join":
                reply = server.join(request.lease_id, LEASE_MS, *position)
            elif request.kind == "renew":
                reply = server.renew(request.lease_id, LEASE_MS, *position, epoch)
            else:
                reply = server.ack(request.lease_id, *position, epoch)
        if request is self.lease._in_flight:
            self.answer = reply

    # The exploration

    def steps(self) -> Iterator[tuple[str, Callable[[World], Any]]]:
        cuts, drift, flushes, failovers, timeouts, moves = self.budget

        def spend(index: int, step: Callable[[World], None]) -> Callable[[World], None]:
            def run(world: World) -> None:
                step(world)
                if world.budget[index] < 99:
                    world.budget = (*world.budget[:index], world.budget[index] - 1, *world.budget[index + 1 :])

            return run

        yield "a tick", World.tick
        if self.inbox and self.live:
            yield "the view gets a message", World.deliver
        if self.lease._in_flight is None:
            yield "the view sends", World.poll
        elif self.answer is not None:
            yield "the view gets an answer", World.receive
        if self.lease._in_flight is not None and timeouts:
            yield "the view's request times out", spend(4, World.give_up_waiting)
        for index, request in enumerate(self.network):
            yield f"Redis runs {request.kind} {request.lease_id}", partial(World.run, index=index)
        if self.committed < self.setup.writes:
            write_id = f"w{self.committed + 1}"
            yield f"{write_id} is committed", partial(World.write, write_id=write_id)
        if not self.live:
            yield "the view resyncs", World.resync
        if self.live and not self.connected:
            yield "the view sees that its subscription is dead", World.become_inconsistent
        if cuts and self.connected and self.live:
            yield "the subscription dies", spend(0, World.cut)
        if drift:
            yield "the view's clock loses a tick", spend(1, World.fall_behind)
        if flushes:
            yield "FLUSHALL", spend(2, World.flush)
        if failovers and self.replica is None:
            yield "the replica lags", World.lag
        if failovers and self.replica is not None:
            yield "the replica takes over", spend(3, World.fail_over)
        if moves:
            yield "the slot moves", spend(5, World.move)

    def is_fresh(self) -> bool:
        return self.lease.fresh_until() > self.local

    def violation(self) -> str | None:
        """What is wrong: the view is fresh without a write that has returned; or a write waits too long."""
        if self.setup.bounded:
            for rev, write_id, committed_at in self.waiting:
                for lease_id, expiry in self.server.leases.items():
                    waits_ms = expiry - committed_at
                    if self.server.acks[lease_id] < rev and waits_ms > LONGEST_WAIT_MS:
                        return f"{write_id} waits for up to {waits_ms / LEASE_MS:.2f} leases"
            return None
        if not self.is_fresh():
            return None
        for _, write_id in self.returned:
            if write_id not in self.path:
                return f"{write_id} has returned; the view is fresh and has applied {self.path}"
        return None

    @property
    def may_lose(self) -> bool:
        """Whether Redis may still lose writes."""
        _, _, flushes, failovers, _, _ = self.budget
        return flushes > 0 or failovers > 0

    def may_matter(self, write_id: str) -> bool:
        """Whether the view can still miss a write: it lacks the write, and is not about to read everything anew."""
        return self.may_lose or self.setup.bounded or (self.live and write_id not in self.path)

    def is_over(self) -> bool:
        """Whether nothing can go wrong any more."""
        if self.committed < self.setup.writes or self.may_lose:
            return False
        return not self.waiting if self.setup.bounded else self.live and self.path == self.chain

    def drop_dead_letters(self) -> None:
        """Drop requests for leases that Redis has dropped: they do nothing whenever they run."""
        lost = [
            request
            for request in self.network
            if request is not self.lease._in_flight
            and request.kind != "join"
            and request.lease_id not in self.server.leases
            and not any(other.kind == "join" and other.lease_id == request.lease_id for other in self.network)
        ]
        if lost and not self.may_lose:
            self.network = tuple(request for request in self.network if request not in lost)

    def key(self) -> Any:
        """Identify the state by what matters for its future."""
        server, lease, now, local = self.server, self.lease, self.server.now, self.local
        sent = lease._in_flight
        ids = sorted({*(r.lease_id for r in self.network), lease._id or "", lease._leaving or ""})
        name = {lease_id: n for n, lease_id in enumerate(ids)}

        epochs: dict[str, int] = {"": 0}

        def epoch_key(epoch: str) -> int:
            return epochs.setdefault(epoch, len(epochs))

        def request_key(request: LeaseRequest) -> Any:
            epoch = epoch_key(str(request.call.args[-1])) if request.kind in ("renew", "ack") else None
            return request.kind, name[request.lease_id], request.position, epoch

        def reply_key(reply: LeaseReply | AckReply | None) -> Any:
            if not isinstance(reply, LeaseReply):
                return reply and reply.status
            read_at = (self.setup.drift or self.setup.moves) and max(reply.now - now, -2 * LEASE_MS)
            return reply.status, reply.rev, reply.id, epoch_key(reply.epoch), reply.lease_ms, read_at

        # What is over by one clock may not be by the other.
        least = -LEASE_MS if self.budget[5] else 0

        def server_key(server: ServerModel) -> Any:
            leases = sorted(
                (name[i], max(least, expiry - now), server.acks[i], *server.notes[i][:2], epoch_key(server.notes[i][2]))
                for i, expiry in server.leases.items()
                if i in name
            )
            # Of the other leases with one acknowledged revision, only the last to expire matters.
            ghosts: dict[int, int] = {}
            for i, expiry in server.leases.items():
                if i not in name:
                    ghosts[server.acks[i]] = max(ghosts.get(server.acks[i], 0), expiry - now)
            countable_in_ms = max(least, server.countable_at - now)
            run = server.epoch[:4], epoch_key(server.epoch), server.server_run
            return server.rev, server.id, server.lost, countable_in_ms, run, *leases, *sorted(ghosts.items())

        sent_key: Any = sent
        if sent is not None:
            # If the lease was given up, its answer is void. If the answer is late enough, it proves no lease.
            void = sent.lease_id != lease._id
            on_its_way = sent in self.network
            sent_key = void, on_its_way
            if not void:
                age = None if sent.kind == "ack" else min(local - sent.sent_at, LEASE_MS / 1000)
                sent_key = sent.kind, sent.position, on_its_way, age, reply_key(self.answer)
        held: Any = None
        if lease._id is not None:
            since: Any = None
            if not lease._held and sent is not None and sent.position is not None and self.view.rev > sent.position.rev:
                # The answer is compared with the changes since the request.
                since = epoch_key(self.view._epoch), max(self.view._epoch_since, sent.position.rev + 1)
            reading = lease._reading if self.setup.drift or self.setup.moves else None
            held = (
                name[lease._id],
                lease._held,
                max(0.0, lease._until - local),
                max(0.0, lease._renew_at - local),
                lease._head and lease._head[:2],
                lease._reached,
                epoch_key(lease._epoch),
                since,
                lease._held and lease._acked_rev,
                lease._held and lease._recorded == self.view.position,
                # Only the difference of the clocks matters.
                reading
                and tuple(
                    max(min(now - reading.redis_ms - (local - at) * 1000, LEASE_MS), -LEASE_MS) for at in reading[1:]
                ),
            )
        return (
            server_key(server),
            server.listeners,
            self.replica and (server_key(self.replica[0]), self.replica[1]),
            (self.chain, self.live and self.path),
            held,
            lease._leaving and name[lease._leaving],
            max(0, math.ceil(lease._retry_at - local)),
            lease._ack_wanted,
            sent_key,
            tuple(request_key(request) for request in self.network),
            self.budget,
            self.live
            and (self.connected, self.view.position, tuple((*item[:3], epoch_key(item[3])) for item in self.inbox)),
            self.committed,
            tuple(
                (
                    rev,
                    write_id,
                    max(-LEASE_MS * 2 if self.setup.bounded else least, settled - now),
                    write_id in self.latched,
                )
                for rev, write_id, settled in self.waiting
                if self.may_matter(write_id)
            ),
            tuple(item for item in self.returned if self.may_matter(item[1])),
        )


@dataclass
class Outcome:
    states: int
    seconds: float
    #: states in which the view is fresh, and states in which a write has returned
    fresh: int
    returned: int
    violation: str | None
    trace: list[str]


def explore(setup: Setup, limit: int = 2_000_000) -> Outcome:
    """Visit every state, or stop at the first violation."""
    gc.disable()  # nothing here is circular, and the collector would take most of the time
    trace = sys.gettrace()
    sys.settrace(None)  # coverage would take half of the time; the other tests cover the same lines
    try:
        return _explore(setup, limit)
    finally:
        sys.settrace(trace)
        gc.enable()


def _explore(setup: Setup, limit: int) -> Outcome:
    started = time.perf_counter()
    first = World(setup)
    #: state → the state before it, and the step between
    seen: dict[Any, tuple[Any, str] | None] = {first.key(): None}
    queue = deque([(first, first.key())])
    fresh = returned = 0

    def outcome(violation: str | None, trace: list[str]) -> Outcome:
        return Outcome(len(seen), time.perf_counter() - started, fresh, returned, violation, trace)

    while queue:
        world, key = queue.popleft()
        for label, step in world.steps():
            after = world.copy()
            Ids.next = world.next_id
            if step(after) is False:
                continue
            after.next_id = Ids.next
            after.look()
            after.drop_dead_letters()
            after_key = after.key()
            if after_key in seen:
                continue
            seen[after_key] = (key, label)
            fresh += after.is_fresh()
            returned += len(after.returned) > 0
            violation = after.violation()
            if violation is not None:
                return outcome(violation, _trace(seen, after_key))
            assert len(seen) < limit, "the exploration is larger than intended"
            if not after.is_over():
                queue.append((after, after_key))
    return outcome(None, [])


def _trace(seen: dict[Any, tuple[Any, str] | None], key: Any) -> list[str]:
    trace = []
    before = seen[key]
    while before is not None:
        key, label = before
        trace.append(label)
        before = seen[key]
    return trace[::-1]


# What must hold

_MOVES: Any = {"delayed": 0, "cuts": 0, "timeouts": 0, "writes": 1}

SOUND = {
    "requests that are delayed past the next join": Setup(delayed=1, cuts=0),
    "a subscription that is lost without notice": Setup(delayed=0, cuts=1),
    "both, with one write": Setup(delayed=1, cuts=1, writes=1),
    "a clock that falls behind within the margin": Setup(delayed=0, cuts=0, drift=1, margin_s=1.0, writes=1),
    "FLUSHALL": Setup(delayed=0, cuts=0, flushes=1, timeouts=0),
    "a lagging replica that takes over": Setup(delayed=0, cuts=0, failovers=1, timeouts=0, writes=1),
    "a slot that moves to a clock that is ahead": Setup(moves=1, ahead_ms=LEASE_MS, **_MOVES),
    "and messages of the old primary": Setup(delayed=0, cuts=0, failovers=1, lags=True, writes=3, timeouts=0),
}

#: What takes minutes: ``python -m tests.unit.replica.test_lease_protocol``.
MORE = {
    "requests delayed, and a subscription lost": Setup(delayed=1, cuts=1),
    "two requests delayed": Setup(delayed=2, cuts=0, writes=1),
    "a clock that falls behind, and a subscription lost": Setup(delayed=0, cuts=1, drift=1, margin_s=1.0),
    "FLUSHALL, with three writes and a lost answer": Setup(delayed=0, cuts=0, flushes=1, writes=3, timeouts=1),
    "a failover, with three writes": Setup(delayed=0, cuts=0, failovers=1, writes=3, timeouts=0),
    "long waits": Setup(bounded=True, writes=1),
    "a slot that moves there and back, to a clock that is ahead": Setup(moves=2, ahead_ms=LEASE_MS, **_MOVES),
    "a slot that moves there and back, to a clock that is behind": Setup(moves=2, ahead_ms=-LEASE_MS, **_MOVES),
}


@pytest.mark.parametrize("faults", SOUND)
def test_a_fresh_view_has_applied_every_write_that_returned(faults: str) -> None:
    outcome = explore(SOUND[faults])

    print(f"{faults}: {outcome.states} states in {outcome.seconds:.1f} s")
    assert outcome.violation is None, "\n".join([*outcome.trace, outcome.violation])
    # It has explored enough: the view was fresh, and writes have returned.
    assert outcome.fresh > 500
    assert outcome.returned > 500


def test_no_write_waits_longer_than_a_lease_and_a_third() -> None:
    outcome = explore(Setup(bounded=True, writes=1, cuts=0))

    print(f"{outcome.states} states in {outcome.seconds:.1f} s")
    assert outcome.violation is None, "\n".join([*outcome.trace, outcome.violation])
    assert outcome.returned > 500


# Planted flaws


class ServesAfterJoin(Lease):
    """Fresh as soon as it has a lease."""

    def _prolong(self, *args: Any) -> None:
        super()._prolong(*args)
        self._reached = True


class CountsFromReply(Lease):
    """A lease that begins when its answer arrives."""

    def answered(self, request: LeaseRequest, reply: LeaseReply | AckReply, now: float) -> None:
        if request is self._in_flight:
            request = self._in_flight = msgspec.structs.replace(request, sent_at=now)
        super().answered(request, reply, now)


class LeavesFirst(Lease):
    """The view stays fresh until the lease is left, instead of stopping first."""

    def _give_up(self) -> None:
        until, reached = self._until, self._reached
        super()._give_up()
        self._until, self._reached = until, reached


class IgnoresEpochs(Lease):
    """Accepts messages that another run of Redis has published."""

    def _check_epoch(self, chain: Chain) -> None:
        pass


class ClaimsAll(Lease):
    """Says of every position that it was acknowledged."""

    def poll(self, now: float) -> LeaseRequest | None:
        self._recorded = None if self._chain is None else self._chain.position
        return super().poll(now)


class NoPreviousHead(Rules):
    previous_head = False


class GivenLate(Rules):
    late = False


class NoSettling(Rules):
    keeps_countable_at = False


class NoRun(Rules):
    run = False


class AnyClock(Rules):
    own_clock = False


FLAWS = {
    "another primary prolongs leases": Setup(
        rules=AnyClock, delayed=0, cuts=0, moves=2, ahead_ms=-LEASE_MS, timeouts=0
    ),
    "a renewal does not need the head before": Setup(rules=NoPreviousHead, delayed=0, bounded=True),
    "a late renewal is given a whole lease": Setup(rules=GivenLate, bounded=True),
    "the lease id is the view's": Setup(new_id=lambda: "view", cuts=0),
    "it serves right after the join": Setup(lease=ServesAfterJoin, delayed=0),
    "a lease counts from the reply": Setup(lease=CountsFromReply, delayed=0, cuts=0),
    "it acknowledges before applying": Setup(hasty=True, delayed=0, cuts=0),
    "it says that it has acknowledged what it has not": Setup(lease=ClaimsAll, bounded=True, delayed=0, cuts=0),
    "it leaves before it stops": Setup(lease=LeavesFirst, delayed=0),
    "no margin, and a clock that falls behind": Setup(drift=1, margin_s=0.0, delayed=0, cuts=0),
    "no settling after FLUSHALL": Setup(rules=NoSettling, flushes=1, delayed=0, cuts=0),
    "leases outlive the run of the server": Setup(rules=NoRun, failovers=1, delayed=0, cuts=0),
    "it ignores epochs": Setup(lease=IgnoresEpochs, delayed=0, cuts=0, failovers=1, lags=True, writes=3, timeouts=0),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_finds_the_planted_flaw(flaw: str) -> None:
    outcome = explore(FLAWS[flaw])

    steps = "".join(f"\n  {step}" for step in outcome.trace)
    print(f"{flaw}: {len(outcome.trace)} steps, {outcome.states} states in {outcome.seconds:.1f} s{steps}")
    assert outcome.violation is not None


def main() -> None:
    for faults, setup in MORE.items():
        outcome = explore(setup, limit=20_000_000)
        print(f"{faults}: {outcome.states} states in {outcome.seconds:.1f} s", *outcome.trace, sep="\n  ")
        if outcome.violation is not None:
            raise SystemExit(outcome.violation)


if __name__ == "__main__":
    main()
