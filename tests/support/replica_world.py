"""A model of Redis and a replica, linked in memory. The link may lose, double, swap and damage messages.

`World.step` takes one action and then checks the invariants. The model keeps every committed state, so the check can
compare what the replica serves with the state at the replica's position.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from sessionstore import Session
from sessionstore.catalog.model import Catalog, Mock
from sessionstore.protocol.calls import Call
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.protocol.messages import CatalogChanged, Change, ExpiryMoved, SessionDeleted, SessionSet, SessionState
from sessionstore.protocol.replies import CatalogReply, SnapshotReply
from sessionstore.replica.chain import Inconsistent
from sessionstore.replica.replica import Replica, State

__all__ = ["ACTIONS", "Redis", "World", "random_steps", "reached"]

KEYS = EnvironmentKeyspace("ss", "checkout", "staging")
SESSION_KEYS = ("a", "b", "c", "d")
#: ms; the shorter one lets sessions expire on the way
TTLS_MS = (100, 1_000_000)

encode = msgspec.json.Encoder().encode


class Contents(Struct, frozen=True):
    """The contents of Redis at one position, including expired sessions."""

    rev: int = 0
    id: str = ""
    sessions: dict[str, SessionState] = {}
    catalog: Catalog | None = None
    catalog_rev: int = 0


class Redis:
    """The sessions of one environment, and its history, which a fault may cut."""

    def __init__(self, page_size: int = 2) -> None:
        self.now = 1_000
        self.publish: Callable[[bytes], None] = lambda payload: None
        self._page_size = page_size
        #: the history, oldest first; the last entry is stored
        self.history = [Contents()]
        #: every state that was ever committed, lost ones too, and the position before each
        self.committed = {(0, ""): self.history[0]}
        self.before: dict[tuple[int, str], tuple[int, str]] = {}
        self._writes = 0

    @property
    def contents(self) -> Contents:
        return self.history[-1]

    @property
    def head(self) -> tuple[int, str]:
        return self.contents.rev, self.contents.id

    def remembers(self, position: tuple[int, str]) -> bool:
        """Whether a position is part of this history."""
        return any((contents.rev, contents.id) == position for contents in self.history)

    def alive(self) -> dict[str, SessionState]:
        return alive(self.contents.sessions, self.now)

    # Writes

    def put(self, key: str, ttl_ms: int = TTLS_MS[1], *, published: bool = True) -> None:
        stored = self.alive().get(key)
        session = SessionState(
            session_key=key,
            rev=self.contents.rev + 1,
            # Unique, so that a state shows which write made it.
            label=str(self._writes + 1),
            scenario=None,
            overrides=(f"ovr_{self._writes % 3}",),
            global_delay_ms=0,
            global_delay_max_ms=0,
            created_at=stored.created_at if stored else self.now,
            last_seen_at=self.now,
            expires_at=max(stored.expires_at if stored else 0, self.now + ttl_ms),
        )
        sessions = {**self.contents.sessions, key: session}
        self._commit(lambda old: replace(old, sessions=sessions), SessionSet, published=published, session=session)

    def delete(self, key: str) -> None:
        if key in self.alive():
            sessions = {name: session for name, session in self.contents.sessions.items() if name != key}
            self._commit(lambda old: replace(old, sessions=sessions), SessionDeleted, session_key=key)

    def touch(self, keys: tuple[str, ...], ttl_ms: int = TTLS_MS[1]) -> None:
        expires_at = self.now + ttl_ms
        touched = {
            key: replace(session, last_seen_at=self.now, expires_at=expires_at)
            for key, session in self.alive().items()
            if key in keys and session.expires_at < expires_at
        }
        if touched:
            sessions = {**self.contents.sessions, **touched}
            moves = tuple((key, expires_at, self.now) for key in touched)
            self._commit(lambda old: replace(old, sessions=sessions), ExpiryMoved, sessions=moves)

    def set_catalog(self, *, empty: bool = False) -> None:
        catalog = None if empty else Catalog(mocks=(Mock(f"ovr_{self._writes}", "a mock"),))
        self._commit(
            lambda old: replace(old, catalog=catalog, catalog_rev=old.rev + 1), CatalogChanged, catalog=catalog
        )

    def _commit(
        self,
        change: Callable[[Contents], Contents],
        kind: Callable[..., Change],
        *,
        published: bool = True,
        **body: object,
    ) -> None:
        before = self.contents
        self._writes += 1
        contents = replace(change(before), rev=before.rev + 1, id=f"id{self._writes}")
        position = (contents.rev, contents.id)
        self.history.append(contents)
        self.committed[position] = contents
        self.before[position] = (before.rev, before.id)
        if published:
            self.publish(encode(kind(rev=contents.rev, id=contents.id, prev=before.id, at=self.now, **body)))

    # Faults

    def roll_back(self, writes: int) -> None:
        """A lagging replica takes over."""
        del self.history[max(1, len(self.history) - writes) :]

    def restart_empty(self) -> None:
        self.history = [Contents()]

    # Reads

    def run(self, call: Call[object]) -> object:
        reply = {"snapshot": self._snapshot, "catalog_read": self._catalog}[call.script.name](call)
        return call.decode(encode(reply))

    def _catalog(self, call: Call[object]) -> CatalogReply:
        return CatalogReply(self.now, (), self.contents.catalog_rev, self.contents.catalog)

    def _snapshot(self, call: Call[object]) -> SnapshotReply:
        cursor, count, *keys = map(str, call.args)
        members: list[str] = []
        if count != "0":
            rest = sorted(key for key in self.contents.sessions if cursor == "0" or key > cursor)
            members = rest[: self._page_size]
            cursor = members[-1] if len(rest) > self._page_size else "0"
        stored = self.alive()
        sessions = tuple(stored[key] for key in keys if key in stored)
        return SnapshotReply(self.now, *self.head, cursor, tuple(members), sessions)


def alive(sessions: dict[str, SessionState], now: int) -> dict[str, SessionState]:
    return {key: session for key, session in sessions.items() if session.expires_at > now}


#: The properties that are compared: all but lastSeenAt, which moves without a message.
Shown = tuple[object, ...]


def shown(session: Session | SessionState) -> Shown:
    revision = session.rev if isinstance(session, SessionState) else session.revision
    return (session.session_key, revision, session.label, session.overrides, session.created_at, session.expires_at)


@dataclass
class Trace:
    """The last state of a session that the replica showed."""

    write: int
    expires_at: int
    gone: bool
    #: the replica's position at that time
    position: tuple[int, str]


#: A confirmation of a subscription that was not requested.
CONFIRMATION = None


class World:
    """The model, the link, and the replica."""

    def __init__(self, make_replica: Callable[..., Replica] = Replica, page_size: int = 2) -> None:
        self.redis = Redis(page_size)
        self.redis.publish = self._publish
        self.replica = make_replica(KEYS)
        self.replica.watchers.append(self._on_change)
        self._told: dict[str, Session] = {}
        self._up = False
        self._link: deque[bytes | None] = deque()
        self._asked: list[Call[Any]] = []
        self._answers: list[tuple[Call[Any], object]] = []
        self._answered: list[tuple[Call[Any], object]] = []
        #: the revision applied when a renewal was sent; then also the head that it returned
        self._renewal: int | None = None
        self._renewed: tuple[int, tuple[int, str]] | None = None
        self._traces: dict[str, Trace] = {}

    def step(self, action: str, a: int, b: int) -> None:
        """Take an action; `a` and `b`, from 0 to 7, are its parameters."""
        getattr(self, action)(a, b)
        self.check()

    # Invariants

    def check(self) -> None:
        replica, redis = self.replica, self.redis
        served = {key: session for key, session in replica.sessions.items() if session.expires_at > redis.now}
        if replica.state is State.LIVE:
            # A live replica serves exactly the state at its position. An unknown position comes from a message with a
            # garbled id.
            contents = redis.committed.get((replica.rev, replica.id))
            if contents is None:
                assert replica.id == GARBLED
            else:
                expected = alive(contents.sessions, redis.now)
                assert {key: shown(value) for key, value in served.items()} == {
                    key: shown(value) for key, value in expected.items()
                }
                if (replica.rev, replica.id) == redis.head:
                    assert replica.catalog == contents.catalog
        # Every change was reported.
        assert {key: shown(value) for key, value in self._told.items()} == {
            key: shown(value) for key, value in replica.sessions.items()
        }
        assert replica.next_expiry_ms == min((value.expires_at for value in replica.sessions.values()), default=None)
        for key in SESSION_KEYS:
            self._trace(key, served.get(key))

    def _trace(self, key: str, session: Session | None) -> None:
        """A session never goes back to an earlier state, unless Redis has lost the later one."""
        position = (self.replica.rev, self.replica.id)
        last = self._traces.get(key)
        if session is None:
            if last is not None and last.expires_at > self.redis.now:
                last.gone, last.position = True, position
            return
        write = int(session.label or 0)
        if last is not None and self.redis.remembers(last.position) and self.redis.remembers(position):
            again = write == last.write and not last.gone and session.expires_at >= last.expires_at
            assert write > last.write or again, f"{key} went back from write {last.write} to {write}"
        self._traces[key] = Trace(write, session.expires_at, False, position)

    def _on_change(self, key: str, session: Session | None) -> None:
        if session is None:
            del self._told[key]
        else:
            assert self.replica.sessions[key] is session
            self._told[key] = session

    def _publish(self, payload: bytes) -> None:
        if self._up:
            self._link.append(payload)

    # Other clients

    def put(self, a: int, b: int) -> None:
        self.redis.put(SESSION_KEYS[a % 4], TTLS_MS[b == 0])

    def put_unpublished(self, a: int, b: int) -> None:
        self.redis.put(SESSION_KEYS[a % 4], published=False)

    def delete(self, a: int, b: int) -> None:
        self.redis.delete(SESSION_KEYS[a % 4])

    def touch(self, a: int, b: int) -> None:
        self.redis.touch((SESSION_KEYS[a % 4], SESSION_KEYS[b % 4]), TTLS_MS[b > 3])

    def set_catalog(self, a: int, b: int) -> None:
        self.redis.set_catalog(empty=a == 0)

    def pass_time(self, a: int, b: int) -> None:
        self.redis.now += 1 + 10 * a

    # Faults of Redis: the link stays, loses its messages, reconnects silently, or breaks

    def roll_back(self, a: int, b: int) -> None:
        self.redis.roll_back(1 + a % 4)
        self._fork(b)

    def restart_empty(self, a: int, b: int) -> None:
        self.redis.restart_empty()
        self._fork(b)

    def _fork(self, b: int) -> None:
        if b % 4 > 0:
            self._link.clear()
        if b % 4 == 2 and self._up:
            self._link.append(CONFIRMATION)
        if b % 4 == 3:
            self.break_link(0, 0)

    # Faults of the link

    def connect(self, a: int, b: int) -> None:
        if not self._up:
            self._up = True
            self.replica.subscribed()

    def break_link(self, a: int, b: int) -> None:
        if self._up:
            self._up = False
            self._link.clear()
            self.replica.lost("the link broke")

    def reconnect_silently(self, a: int, b: int) -> None:
        if self._up:
            self._link.clear()
            self._link.append(CONFIRMATION)

    def deliver(self, a: int, b: int) -> None:
        for _ in range(min(1 + a, len(self._link))):
            payload = self._link.popleft()
            if payload is None:
                self.replica.resync("a confirmation that was not requested")
            else:
                self.replica.message(payload)

    def drop(self, a: int, b: int) -> None:
        if self._link and self._link[a % len(self._link)] is not CONFIRMATION:
            del self._link[a % len(self._link)]

    def double(self, a: int, b: int) -> None:
        if self._link:
            self._link.insert(b % (len(self._link) + 1), self._link[a % len(self._link)])

    def swap(self, a: int, b: int) -> None:
        if self._link:
            a, b = a % len(self._link), b % len(self._link)
            self._link[a], self._link[b] = self._link[b], self._link[a]

    def corrupt(self, a: int, b: int) -> None:
        if not self._link:
            return
        payload = self._link[b % len(self._link)]
        if payload is not None:
            self._link[b % len(self._link)] = CORRUPTIONS[a](payload)

    # Calls

    def ask(self, a: int, b: int) -> None:
        call = self.replica.poll()
        if call is not None:
            self._asked.append(call)

    def execute(self, a: int, b: int) -> None:
        if self._asked:
            call = self._asked.pop(a % len(self._asked))
            self._answers.append((call, self.redis.run(call)))

    def answer(self, a: int, b: int) -> None:
        if self._answers:
            answer = self._answers.pop(a % len(self._answers))
            self._answered.append(answer)
            self.replica.answered(*answer)

    def hurry(self, a: int, b: int) -> None:
        """Ask, execute and answer, so that a sync makes progress."""
        self.ask(0, 0)
        self.execute(0, 0)
        self.answer(0, 0)

    def fail(self, a: int, b: int) -> None:
        """A call fails, before or after it was executed."""
        if a % 2 and self._asked:
            self.replica.failed(self._asked.pop())
        elif self._answers:
            self.replica.failed(self._answers.pop()[0])

    def answer_again(self, a: int, b: int) -> None:
        if self._answered:
            self.replica.answered(*self._answered[a % len(self._answered)])

    # Other steps of a driver

    def expire(self, a: int, b: int) -> None:
        self.replica.expire(self.redis.now)
        assert all(session.expires_at > self.redis.now for session in self.replica.sessions.values())

    def renew(self, a: int, b: int) -> None:
        """Compare with the head at once: if the chain has passed it, the replica equals Redis."""
        if reached(self.replica, *self.redis.head, since=self.replica.rev):
            assert self.replica.state is State.LIVE
            assert (self.replica.rev, self.replica.id) == self.redis.head

    def send_renewal(self, a: int, b: int) -> None:
        self._renewal = self.replica.rev if self.replica.state is State.LIVE else None

    def execute_renewal(self, a: int, b: int) -> None:
        if self._renewal is not None:
            self._renewed = (self._renewal, self.redis.head)
            self._renewal = None

    def answer_renewal(self, a: int, b: int) -> None:
        """Compare with a head that was read earlier: the replica's history contains it."""
        if self._renewed is None:
            return
        (since, head), self._renewed = self._renewed, None
        if reached(self.replica, *head, since=since) and self.replica.id != GARBLED:
            position = (self.replica.rev, self.replica.id)
            while position != head:
                assert position in self.redis.before, "the replica's history lacks the head"
                position = self.redis.before[position]

    def lose_patience(self, a: int, b: int) -> None:
        """Messages that a sync waits for do not arrive."""
        if self.replica.awaited is not None and not self._link:
            self.replica.resync("messages were lost")

    def heal(self) -> None:
        """From now on everything arrives: the replica must become LIVE and equal to Redis."""
        for _ in range(40):
            self.step("connect", 0, 0)
            while self._link or self._asked or self._answers:
                for action in ("deliver", "execute", "answer"):
                    self.step(action, 0, 0)
            self.step("ask", 0, 0)
            self.step("lose_patience", 0, 0)
            if self.replica.state is State.LIVE and not self._link:
                if reached(self.replica, *self.redis.head, since=self.replica.rev):
                    break
                # The last messages were lost. Only a renewal detects that.
                self.replica.resync("a lease was refused")
        self.step("renew", 0, 0)
        assert self.replica.state is State.LIVE
        assert (self.replica.rev, self.replica.id) == self.redis.head
        self.step("expire", 0, 0)


def reached(replica: Replica, rev: int, head_id: str, since: int = 0) -> bool:
    """Compare a head that Redis named with the chain, as the lease does; a contradiction means a resync."""
    if replica.chain is None:
        return False
    try:
        return replica.chain.passed(rev, head_id, since) is True
    except Inconsistent as exc:
        replica.resync(str(exc))
        return False


GARBLED = "garbled"


def _with(**changes: object) -> Callable[[bytes], bytes]:
    def change(payload: bytes) -> bytes:
        try:
            return encode({**msgspec.json.decode(payload), **changes})
        except msgspec.DecodeError:  # already corrupt
            return payload

    return change


def _with_other_rev(by: int) -> Callable[[bytes], bytes]:
    def change(payload: bytes) -> bytes:
        try:
            message = msgspec.json.decode(payload)
        except msgspec.DecodeError:
            return payload
        return encode({**message, "rev": message["rev"] + by})

    return change


CORRUPTIONS: tuple[Callable[[bytes], bytes], ...] = (
    lambda payload: payload[: len(payload) // 2],
    lambda payload: b"",
    lambda payload: b"\xff" + payload,
    _with(type="unheard of"),
    _with(prev="another"),
    _with(id=GARBLED),
    _with_other_rev(1),
    _with_other_rev(-1),
)

#: Actions with their relative frequency.
TRAFFIC = {
    "put": 8,
    "delete": 4,
    "touch": 4,
    "set_catalog": 2,
    "pass_time": 2,
    "connect": 6,
    "deliver": 16,
    "ask": 4,
    "execute": 4,
    "answer": 4,
    "hurry": 16,
    "expire": 2,
    "renew": 3,
    "send_renewal": 1,
    "execute_renewal": 1,
    "answer_renewal": 1,
    "lose_patience": 2,
}
#: Faults with their relative frequency.
FAULTS = {
    "put_unpublished": 2,
    "roll_back": 4,
    "restart_empty": 1,
    "break_link": 1,
    "reconnect_silently": 1,
    "drop": 2,
    "double": 1,
    "swap": 1,
    "corrupt": 1,
    "fail": 1,
    "answer_again": 2,
}
ACTIONS = TRAFFIC | FAULTS


def random_steps(seed: int, count: int) -> list[tuple[str, int, int]]:
    """A run that depends on the seed alone, with few faults or many."""
    rng = random.Random(seed)
    faults = rng.choice((0.1, 0.5, 1.5))
    weights = [*TRAFFIC.values(), *(weight * faults for weight in FAULTS.values())]
    actions = rng.choices(list(ACTIONS), weights, k=count)
    return [(action, rng.randrange(8), rng.randrange(8)) for action in actions]
