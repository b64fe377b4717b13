"""One environment's sessions in local memory, kept up to date by messages: a state machine.

It does no I/O, reads no clock and starts no thread. A driver reports events of the pub/sub connection (`subscribed`,
`message`, `lost`, `resync`). It runs the calls that `poll` returns, and reports their answers (`answered`, `failed`).
The states, and the table below:

- **EMPTY**: there is no connection. The replica serves the sessions that it has.
- **SYNCING**: the subscription is confirmed. A snapshot is built beside the sessions that are served; snapshot.py has
  the proof.
- **LIVE**: the replica serves exactly the environment's state at the position `rev`, `id`. Each message advances it by
  one revision.

Every inconsistency means a resync: a message that does not decode or is not the next one, a position that contradicts
the chain, an event that the driver can't explain. A resync is cheap and can't be wrong. A repair can.

LIVE does not mean current: messages may be on their way, or lost without a later message that shows it. The lease
compares the chain with the heads that Redis names.

``sessions`` may be read from any thread without a lock. It is one dict, changed in place by single operations, and its
sessions are immutable but for `touched_at`. Everything else belongs to the one flow that drives the replica.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

from ..catalog.model import Catalog
from ..errors import CorruptDataError
from ..protocol.calls import Call
from ..protocol.keyspace import EnvironmentKeyspace
from ..protocol.messages import Change, ExpiryMoved, SessionDeleted, SessionSet, SessionState, decode_change
from ..protocol.replies import session_from_state
from ..session import Session
from .chain import Chain, Inconsistent
from .held_session import HeldSession, moved
from .snapshot import Snapshot

#: Entries that each helper table (expiries, shared values) may have beyond twice the number of sessions.
_SLACK = 1024


class State(enum.Enum):
    """See the module."""

    EMPTY = enum.auto()
    SYNCING = enum.auto()
    LIVE = enum.auto()


class Event(enum.Enum):
    """An edge between states."""

    SUBSCRIBED = enum.auto()
    COMPLETED = enum.auto()
    RESYNC = enum.auto()
    LOST = enum.auto()


#: An event that is missing in its state's row changes nothing.
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


class Replica:
    """The sessions of one environment.

    Attributes
    ----------
    sessions : dict
        Session key → session.
    corrupt : set of str
        Session keys whose records in Redis were corrupt at the last sync, and have not been written since.
    catalog : Catalog or None
        The environment's catalog.
    environments : tuple of str
        The environments that the project had registered at the last sync.
    state : State
    chain : Chain or None
        The position that was applied and the history before it, while LIVE.
    rev, id : int, str
        The position that was applied; if not LIVE, the last one.
    resyncs : int
        Syncs after the first.
    resync_reason : str or None
        Why it last stopped being LIVE, as a clause.
    watchers : list of callable
        Called with session key and session after each change is applied, and for each difference that a resync finds.
        None stands for a session that was deleted or has expired. A new `last_seen_at` alone is no change. A watcher
        must not raise, and must not call the replica.
    """

    def __init__(self, keyspace: EnvironmentKeyspace) -> None:
        self.sessions: dict[str, HeldSession] = {}
        self.corrupt: set[str] = set()
        self.catalog: Catalog | None = None
        self.environments: tuple[str, ...] = ()
        self.state = State.EMPTY
        self.chain: Chain | None = None
        self.rev = 0
        self.id = ""
        self.resyncs = 0
        self.resync_reason: str | None = None
        self.watchers: list[Callable[[str, Session | None], None]] = []
        self._keyspace = keyspace
        self._syncs = 0
        #: only while SYNCING
        self._snapshot: Snapshot | None = None
        #: when sessions expire, the first on top; an entry is void if its session expires at another time
        self._expiries: list[tuple[int, str]] = []
        #: values that many sessions share, so that each is held once
        self._shared: dict[Any, Any] = {}

    # The pub/sub connection

    def subscribed(self) -> None:
        """Redis confirmed a requested subscription: sync."""
        self._enter(Event.SUBSCRIBED)

    def lost(self, reason: str) -> None:
        """The connection is down."""
        self._enter(Event.LOST, reason)

    def resync(self, reason: str) -> None:
        """The connection is up, but something contradicts what is held: read everything again."""
        self._enter(Event.RESYNC, reason)

    def message(self, payload: bytes | str) -> Change | None:
        """Take one message of the changes channel; returns the change if it was applied while LIVE."""
        if self.state is State.EMPTY:
            return None
        try:
            change = decode_change(payload)
            if self.chain is not None:
                return change if self._apply(self.chain, change) else None
            if self._snapshot is not None:
                self._snapshot.message(change)
                self._serve_if_complete(self._snapshot)
        except (CorruptDataError, RecursionError):
            self.resync("a message did not decode")
        except Inconsistent as exc:
            self.resync(str(exc))
        return None

    # Calls

    def poll(self) -> Call[Any] | None:
        """Take a call that is due, if any. Poll again: two may be in flight."""
        return None if self._snapshot is None else self._snapshot.next_call()

    def answered(self, call: Call[Any], reply: Any) -> None:
        """Take the decoded answer to a call of `poll`. An answer to a call of an earlier sync is ignored."""
        if self._snapshot is None:
            return
        try:
            self._snapshot.answered(call, reply)
            self._serve_if_complete(self._snapshot)
        except Inconsistent as exc:
            self.resync(str(exc))

    def failed(self, call: Call[Any]) -> None:
        """A call gets no answer: read the index again from its start."""
        if self._snapshot is not None:
            self._snapshot.failed(call)

    @property
    def awaited(self) -> int | None:
        """The revision that a sync waits for, if it has read every page and only messages are missing.

        If they don't arrive, they were lost, and no later message shows it: the driver should call `resync`.
        """
        return None if self._snapshot is None else self._snapshot.awaited

    @property
    def read_so_far(self) -> int:
        """Sessions that the current sync has read."""
        return 0 if self._snapshot is None else len(self._snapshot.sessions)

    # Time

    @property
    def next_expiry_ms(self) -> int | None:
        """When the first session expires, in Redis time; None without sessions."""
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

        If `now_ms` is too late, it may drop a session whose expiry is about to move. That costs a resync.
        """
        while (first := self.next_expiry_ms) is not None and first <= now_ms:
            _, key = heappop(self._expiries)
            del self.sessions[key]
            self._report(key, None)

    # Internals

    def _enter(self, event: Event, reason: str | None = None) -> None:
        state = TRANSITIONS[self.state].get(event)
        if state is None:
            return
        self.state = state
        if reason is not None:
            self.resync_reason = reason
        if event is Event.COMPLETED:
            return
        self.chain = None
        self._snapshot = None
        if state is State.SYNCING:
            self._snapshot = Snapshot(self._keyspace, self._hold_again)
            self.resyncs = self._syncs
            self._syncs += 1

    def _apply(self, chain: Chain, change: Change) -> bool:
        """Apply a change while LIVE; False if the snapshot contained it."""
        if not chain.accept(change):
            return False
        sessions = self.sessions
        if isinstance(change, SessionSet):
            session = self._hold(change.session)
            self._keep(session)
            self.corrupt.discard(session.session_key)
            self._advance(chain)
            self._report(session.session_key, session)
        elif isinstance(change, SessionDeleted):
            deleted = sessions.pop(change.session_key, None)
            self.corrupt.discard(change.session_key)
            self._advance(chain)
            if deleted is not None:
                self._report(change.session_key, None)
        elif isinstance(change, ExpiryMoved):
            if not all(key in sessions for key, _, _ in change.sessions):
                raise Inconsistent("a message moved the expiry of a session that is not held")
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
        """Publish the position, and only after the change can be read."""
        self.rev, self.id = chain.position

    def _serve_if_complete(self, snapshot: Snapshot) -> None:
        """Replace what is served by the snapshot, by single operations, and report what differs."""
        chain = snapshot.chain
        if chain is None or not snapshot.complete:
            return
        snapshot.verify()
        sessions = self.sessions
        # Before its session goes: a look-up must not find nothing.
        self.corrupt = snapshot.corrupt
        for key in [key for key in sessions if key not in snapshot.sessions]:
            del sessions[key]
            self._report(key, None)
        for key, session in snapshot.sessions.items():
            held = sessions.get(key)
            if session is held:
                continue
            sessions[key] = session
            # A session that was only seen again has not changed.
            if held is None or moved(held, held.expires_at, session.last_seen_at) != session:
                self._report(key, session)
        self._rebuild_expiries()
        self.catalog = snapshot.catalog
        self.environments = snapshot.environments
        self._snapshot = None
        self.chain = chain
        self._advance(chain)
        self._enter(Event.COMPLETED)

    def _keep(self, session: HeldSession) -> None:
        """Put a session in the place of the one that is held, and remember when it expires."""
        key = session.session_key
        held = self.sessions.get(key)
        self.sessions[key] = session
        if held is not None and held.expires_at == session.expires_at:
            return
        heappush(self._expiries, (session.expires_at, key))
        if len(self._expiries) > 2 * len(self.sessions) + _SLACK:
            self._rebuild_expiries()

    def _rebuild_expiries(self) -> None:
        self._expiries = [(session.expires_at, key) for key, session in self.sessions.items()]
        heapify(self._expiries)

    def _hold(self, state: SessionState) -> HeldSession:
        """Make a session of its state, with values that it shares with others."""
        shared = self._shared
        if len(shared) > 2 * len(self.sessions) + _SLACK:
            shared.clear()
        overrides = shared.get(state.overrides)
        if overrides is None:
            overrides = tuple([shared.setdefault(value, value) for value in state.overrides])
            shared[overrides] = overrides
        scenario = shared.setdefault(state.scenario, state.scenario)
        return session_from_state(HeldSession, self._keyspace, state, scenario, overrides)

    def _hold_again(self, state: SessionState) -> HeldSession:
        """Make a session of its state, or return the one that is held if it is equal."""
        session = self._hold(state)
        held = self.sessions.get(session.session_key)
        return held if held is not None and held == session else session

    def _report(self, session_key: str, session: Session | None) -> None:
        for watcher in tuple(self.watchers):
            watcher(session_key, session)
