"""One environment's sessions in local memory, kept right by messages: a state machine without I/O, clock or thread.

A driver feeds in what happens to the pub/sub connection (`subscribed`, `message`, `lost`, `resync`), runs the calls
that `poll` asks for and brings the answers back (`answered`, `failed`). Events lead from state to state by the table
below:

- **EMPTY**: there is no connection. What was held is still served.
- **SYNCING**: the subscription is confirmed, and the contents are read anew beside those that are served (snapshot.py
  says how, and why the result is right).
- **LIVE**: what is served is the environment's state at the position `rev`, `id`, exactly, and each message takes it to
  the next one.

Every inconsistency means a resync: a message that does not decode, or is not the very next one of the same history; a
position that Redis names and the chain contradicts; whatever the driver can't explain. A resync is cheap and can't be
wrong; a repair can.

LIVE does not mean current, since messages may be on their way, or lost with nothing after them to show it. `reached`
tells that for a position which Redis has named: the replica is as current as that position where it is true.

``sessions`` may be read from any thread without a lock: it is one dict, changed in place by single operations, and the
sessions in it are immutable but for `touch_pending`. Everything else belongs to the one flow that drives the replica.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

from ..catalog.model import Catalog
from ..errors import CorruptDataError
from ..protocol.calls import Call
from ..protocol.keyspace import EnvironmentKeyspace
from ..protocol.messages import Change, ExpiryMoved, SessionDeleted, SessionSet, SessionState, decode_change
from ..session import Session
from .chain import Chain, Inconsistent
from .held_session import HeldSession, moved
from .snapshot import Snapshot

#: Entries that the two helping tables (expiries, shared values) may have beyond twice the sessions held.
_SLACK = 1024


class State(enum.Enum):
    """See the module."""

    EMPTY = enum.auto()
    SYNCING = enum.auto()
    LIVE = enum.auto()


class Event(enum.Enum):
    """What leads from state to state."""

    SUBSCRIBED = enum.auto()
    COMPLETED = enum.auto()
    RESYNC = enum.auto()
    LOST = enum.auto()


#: An event that is not in its state's row changes nothing.
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.EMPTY: {
        Event.SUBSCRIBED: State.SYNCING,
    },
    State.SYNCING: {
        Event.SUBSCRIBED: State.SYNCING,
        Event.COMPLETED: State.LIVE,
        Event.RESYNC: State.SYNCING,
        Event.LOST: State.EMPTY,
    },
    State.LIVE: {
        Event.SUBSCRIBED: State.SYNCING,
        Event.RESYNC: State.SYNCING,
        Event.LOST: State.EMPTY,
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A call that the driver is to run; its decoded answer goes to `Replica.answered`."""

    call: Call[Any]
    #: the sync that it belongs to: an answer that comes after the sync has ended is ignored
    generation: int


class Replica:
    """The sessions of one environment.

    Parameters
    ----------
    project, environment : str
        What the sessions are held for.
    keyspace : EnvironmentKeyspace
        Its names in Redis.
    catalog_call : Call, optional
        How to read the catalog (`calls.read_catalog`); without it, only messages tell of it.

    Attributes
    ----------
    sessions : dict
        Session key → session.
    catalog : Catalog or None
        The environment's catalog.
    state : State
        Where the replica stands.
    rev, id : int, str
        The position that has been applied; that of the last time it was LIVE where it is not.
    resyncs : int
        Syncs after the first.
    resync_reason : str or None
        Why it was last not LIVE any more, as a clause.
    on_change : callable or None
        Called with session key and session after each change is applied, also for what a resync finds; None is for
        one that is gone, deleted or expired. A move of `last_seen_at` alone is no change. It must not raise, nor call
        the replica.
    """

    def __init__(
        self, project: str, environment: str, keyspace: EnvironmentKeyspace, catalog_call: Call[Any] | None = None
    ) -> None:
        self.sessions: dict[str, HeldSession] = {}
        self.catalog: Catalog | None = None
        self.state = State.EMPTY
        self.rev = 0
        self.id = ""
        self.resyncs = 0
        self.resync_reason: str | None = None
        self.on_change: Callable[[str, Session | None], None] | None = None
        self._project = project
        self._environment = environment
        self._keyspace = keyspace
        self._catalog_call = catalog_call
        self._generation = 0
        self._syncs = 0
        #: there is a snapshot while SYNCING, and a chain while LIVE
        self._snapshot: Snapshot | None = None
        self._chain: Chain | None = None
        self._in_flight: Request | None = None
        #: when sessions expire, the first one on top; an entry that differs from its session counts for nothing
        self._expiries: list[tuple[int, str]] = []
        #: values that many sessions have, so that each is held once
        self._shared: dict[Any, Any] = {}

    # The pub/sub connection

    def subscribed(self) -> None:
        """Redis confirmed the subscription that was asked for: sync."""
        self._enter(Event.SUBSCRIBED)

    def lost(self, reason: str) -> None:
        """The connection is down. What is held is still served."""
        self._enter(Event.LOST, reason)

    def resync(self, reason: str) -> None:
        """Something can't be explained while the connection is up: resync."""
        self._enter(Event.RESYNC, reason)

    def message(self, payload: bytes | str) -> Change | None:
        """Take one message of the changes channel; returns the change if that was applied while LIVE."""
        if self.state is State.EMPTY:
            return None
        try:
            change = decode_change(payload)
            if self._chain is not None:
                return change if self._apply(self._chain, change) else None
            if self._snapshot is not None:
                self._snapshot.message(change)
                self._serve_if_complete(self._snapshot)
        except (CorruptDataError, RecursionError):
            self.resync("a message did not decode")
        except Inconsistent as exc:
            self.resync(str(exc))
        return None

    # Calls

    def poll(self) -> Request | None:
        """Take the request that is due; None if none is due, or one is in flight."""
        if self._snapshot is None or self._in_flight is not None:
            return None
        call = self._snapshot.next_call()
        if call is not None:
            self._in_flight = Request(call, self._generation)
        return self._in_flight

    def answered(self, request: Request, reply: Any) -> None:
        """Bring the decoded answer to a request that `poll` returned."""
        if request is not self._in_flight or self._snapshot is None:
            return
        self._in_flight = None
        try:
            self._snapshot.answered(reply)
            self._serve_if_complete(self._snapshot)
        except Inconsistent as exc:
            self.resync(str(exc))

    def failed(self, request: Request) -> None:
        """Say that no answer will come to a request: it is due again, from the start of the index."""
        if request is not self._in_flight or self._snapshot is None:
            return
        self._in_flight = None
        self._snapshot.restart()

    @property
    def awaited(self) -> int | None:
        """The revision that a sync waits for, where every page has been read and only messages are missing.

        Where that does not end, messages were lost and nothing has come after them to show it: the driver should call
        `resync`.
        """
        return None if self._snapshot is None else self._snapshot.awaited

    @property
    def read_so_far(self) -> int:
        """Sessions that a sync which is not complete has read."""
        return 0 if self._snapshot is None else len(self._snapshot.sessions)

    # Time and position

    @property
    def next_expiry_ms(self) -> int | None:
        """When the first of the sessions held expires, in Redis time; None where none is held."""
        expiries = self._expiries
        while expiries:
            expires_at, key = expiries[0]
            session = self.sessions.get(key)
            if session is not None and session.expires_at == expires_at:
                return expires_at
            heappop(expiries)
        return None

    def expire(self, now_ms: int) -> None:
        """Drop the sessions that have expired by `now_ms`, Redis time.

        A time that runs ahead drops a session that may yet be seen and live on, which then costs a resync.
        """
        while (first := self.next_expiry_ms) is not None and first <= now_ms:
            _, key = heappop(self._expiries)
            del self.sessions[key]
            self._report(key, None)

    def reached(self, rev: int, head_id: str, *, since: int = 0) -> bool:
        """Whether a position that Redis has named has been applied; a contradiction means a resync.

        Parameters
        ----------
        rev, head_id : int, str
            The head that Redis returned.
        since : int
            The revision that had been applied when the head was asked for. A lower head proves that Redis has lost part
            of its history, also where the chain knows that head as one of its own; a head that messages have overtaken
            on its way here is never lower.

        Returns
        -------
        bool
            False where it is yet to come, is too old to be compared, or the replica is not LIVE.
        """
        chain = self._chain
        if chain is None:
            return False
        if rev < since:
            self.resync(f"Redis is at revision {rev} and was at {since} before: it has lost part of its history")
            return False
        try:
            return chain.passed(rev, head_id) is True
        except Inconsistent as exc:
            self.resync(str(exc))
            return False

    # Within

    def _enter(self, event: Event, reason: str | None = None) -> None:
        state = TRANSITIONS[self.state].get(event)
        if state is None:
            return
        self.state = state
        if reason is not None:
            self.resync_reason = reason
        if event is Event.COMPLETED:
            return
        # Whatever was under way belongs to the past.
        self._generation += 1
        self._in_flight = None
        self._chain = None
        self._snapshot = None
        if state is State.SYNCING:
            self._snapshot = Snapshot(self._keyspace, self._catalog_call, self._hold_again)
            self.resyncs = self._syncs
            self._syncs += 1

    def _apply(self, chain: Chain, change: Change) -> bool:
        """Apply a change while LIVE; False where what is held has it already."""
        if not chain.accept(change):
            return False
        sessions = self.sessions
        if isinstance(change, SessionSet):
            session = self._hold(change.session)
            self._keep(session)
            self._advance(chain)
            self._report(session.session_key, session)
        elif isinstance(change, SessionDeleted):
            gone = sessions.pop(change.session_key, None)
            self._advance(chain)
            if gone is not None:
                self._report(change.session_key, None)
        elif isinstance(change, ExpiryMoved):
            if not all(key in sessions for key, _, _ in change.sessions):
                raise Inconsistent("a session that is not held lives longer")
            for key, expires_at, last_seen_at in change.sessions:
                self._keep(moved(sessions[key], expires_at, last_seen_at))
            self._advance(chain)
            for key, _, _ in change.sessions:
                self._report(key, sessions[key])
        else:
            self.catalog = change.catalog
            self._advance(chain)
        return True

    def _advance(self, chain: Chain) -> None:
        """Say where the replica stands, after the change is there to be read: never the other way round."""
        self.rev = chain.rev
        self.id = chain.id

    def _serve_if_complete(self, snapshot: Snapshot) -> None:
        """Go over from what was served to the snapshot, by single operations, and report what differs."""
        chain = snapshot.chain
        if chain is None or not snapshot.complete:
            return
        snapshot.verify()
        sessions = self.sessions
        for key in [key for key in sessions if key not in snapshot.sessions]:
            del sessions[key]
            self._report(key, None)
        for key, session in snapshot.sessions.items():
            held = sessions.get(key)
            if session is held:
                continue
            sessions[key] = session
            if held is None or _differ(held, session):
                self._report(key, session)
        self._expiries = [(session.expires_at, key) for key, session in sessions.items()]
        heapify(self._expiries)
        self.catalog = snapshot.catalog
        self._snapshot = None
        self._chain = chain
        self._advance(chain)
        self._enter(Event.COMPLETED)

    def _keep(self, session: HeldSession) -> None:
        """Put a session in place of the one that is held, and remember when it expires."""
        key = session.session_key
        held = self.sessions.get(key)
        self.sessions[key] = session
        if held is not None and held.expires_at == session.expires_at:
            return
        heappush(self._expiries, (session.expires_at, key))
        if len(self._expiries) > 2 * len(self.sessions) + _SLACK:
            self._expiries = [(session.expires_at, key) for key, session in self.sessions.items()]
            heapify(self._expiries)

    def _hold(self, state: SessionState) -> HeldSession:
        """Make a session of its state, with values that others have shared with them."""
        shared = self._shared
        if len(shared) > 2 * len(self.sessions) + _SLACK:
            shared.clear()
        overrides = shared.get(state.overrides)
        if overrides is None:
            overrides = tuple([shared.setdefault(value, value) for value in state.overrides])
            shared[overrides] = overrides
        return HeldSession(
            project=self._project,
            environment=self._environment,
            session_key=state.session_key,
            label=state.label,
            scenario=shared.setdefault(state.scenario, state.scenario),
            overrides=overrides,
            global_delay_ms=state.global_delay_ms,
            global_delay_max_ms=state.global_delay_max_ms,
            last_seen_at=state.last_seen_at,
            revision=state.rev,
            created_at=state.created_at,
            expires_at=state.expires_at,
        )

    def _hold_again(self, state: SessionState) -> HeldSession:
        """Make a session of its state, or take the one that is held where that is equal."""
        session = self._hold(state)
        held = self.sessions.get(session.session_key)
        return held if held is not None and held == session else session

    def _report(self, session_key: str, session: Session | None) -> None:
        if self.on_change is not None:
            self.on_change(session_key, session)


def _differ(held: Session, session: Session) -> bool:
    """Whether two sessions of one key differ in more than when they were last seen."""
    return (
        held.revision != session.revision
        or held.expires_at != session.expires_at
        or held.created_at != session.created_at
        or held.label != session.label
        or held.scenario != session.scenario
        or held.overrides != session.overrides
        or held.global_delay_ms != session.global_delay_ms
        or held.global_delay_max_ms != session.global_delay_max_ms
    )
