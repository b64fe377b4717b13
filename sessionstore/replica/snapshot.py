"""What a replica builds while it syncs, from pages of the index and from messages, and the proof that they agree.

**The chain.** From the position of the first page on, each message continues the one before: ``rev`` is one higher, and
``prev`` equals the id. So the messages since then are complete and belong to one history.

**The pages.** Each page names the position that it was read at, which may be ahead of the messages or behind them. The
snapshot is complete once the chain has passed the positions of all pages, with equal ids. This proves that each page
was read from the history of the messages, and not from one that Redis has lost since.

**The merge.** A session that a message has set or deleted since the first page is as the messages say, whatever a page
says. Any other session has changed in its expiry at most. A page has all of it but the expiry, which is that of the
last message that names it, if any.

Nothing is served before the snapshot is complete: a message may still take back what a page ahead of it has shown.

Two calls may be in flight, so that Redis reads one page while the last one is decoded. Their answers may arrive in any
order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..catalog.model import Catalog
from ..protocol import calls
from ..protocol.calls import FIND_BATCH, SNAPSHOT_BATCH, Call
from ..protocol.keyspace import EnvironmentKeyspace
from ..protocol.messages import Change, ExpiryMoved, SessionDeleted, SessionSet, SessionState
from ..protocol.replies import CatalogReply, SnapshotReply
from .chain import Chain, Inconsistent
from .held_session import HeldSession, moved

#: Messages that are kept until the first page says where the chain begins. If an older one was needed, the chain has a
#: gap, which shows.
EARLY_MESSAGES = 4096


#: Calls in flight.
_CALLS = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A call in flight."""

    call: Call[Any]
    #: whether it goes on in the index
    finds: bool
    #: the revision of the pages that had been read when it was asked for
    since: int


class Snapshot:
    """One sync: it asks for calls and takes answers and messages until it is `complete`.

    Parameters
    ----------
    keyspace : EnvironmentKeyspace
        The environment.
    hold : callable
        Makes a session of its state.
    """

    def __init__(self, keyspace: EnvironmentKeyspace, hold: Callable[[SessionState], HeldSession]) -> None:
        self._keyspace = keyspace
        self._hold = hold
        #: None until the first page says where it begins
        self.chain: Chain | None = None
        self.sessions: dict[str, HeldSession] = {}
        #: session keys whose records are corrupt
        self.corrupt: set[str] = set()
        self.catalog: Catalog | None = None
        #: the environments that the project has registered
        self.environments: tuple[str, ...] = ()
        self._early: deque[Change] = deque(maxlen=EARLY_MESSAGES)
        #: sessions that messages deleted, and (expiresAt, lastSeenAt) of those that no page has shown yet
        self._deleted: set[str] = set()
        self._moves: dict[str, tuple[int, int]] = {}
        #: positions of pages that the chain has yet to pass
        self._unpassed: deque[tuple[int, str]] = deque()
        #: the highest revision and the latest time at which a page was read
        self._page_rev = 0
        self._page_now = 0
        self._steps: list[_Step] = []
        #: where to go on in the index, until that is over; sessions that were found and not read
        self._cursor: str | None = "0"
        self._unread: list[str] = []
        #: whether the catalog was read, the revision of the last message that set it, and the revision that a message
        #: must bring it at before the snapshot is complete
        self._catalog_read = False
        self._catalog_rev = 0
        self._catalog_due = 0

    # Calls and answers

    def next_call(self) -> Call[Any] | None:
        """The call to run next, if any; its answer goes to `answered`. Each call is an object of its own."""
        if len(self._steps) >= (_CALLS if self._catalog_read else 1):
            return None
        finds = False
        if self.chain is not None and not self._catalog_read:
            # Between the first and the last page: so the pages prove which history it was read from.
            call: Call[Any] = calls.read_catalog(self._keyspace)
        else:
            batch, rest = self._unread[:SNAPSHOT_BATCH], self._unread[SNAPSHOT_BATCH:]
            # Each cursor comes from the last one, so one call at a time goes on in the index.
            may_find = self._cursor is not None and not any(step.finds for step in self._steps)
            # Enough is found ahead for both steps in flight, so that Redis never waits for one.
            finds = may_find and len(rest) < _CALLS * SNAPSHOT_BATCH
            if not (batch or finds):
                return None
            self._unread = rest
            call = calls.snapshot(self._keyspace, self._cursor or "0", batch, count=FIND_BATCH if finds else 0)
        self._steps.append(_Step(call, finds, self._page_rev))
        return call

    def answered(self, call: Call[Any], reply: Any) -> None:
        """Take the answer to a call; an answer to any other call is ignored.

        Raises
        ------
        Inconsistent
            It does not belong to the chain's history.
        """
        step = next((step for step in self._steps if step.call is call), None)
        if step is None:
            return
        self._steps.remove(step)
        if isinstance(reply, CatalogReply):
            self._take_catalog(reply)
        else:
            self._take_page(step, reply)

    def failed(self, call: Call[Any]) -> None:
        """A call gets no answer."""
        if any(step.call is call for step in self._steps):
            self.restart()

    def restart(self) -> None:
        """Read the index again from its start: a cursor is valid only in the process that returned it.

        The sessions that were read remain, and are not read again.
        """
        self._steps = []
        self._cursor = "0"
        self._unread = []

    @property
    def complete(self) -> bool:
        """Whether sessions and catalog are those of the chain's position."""
        return self._is_read and not self._unpassed and self._catalog_due <= self._catalog_rev

    def verify(self) -> None:
        """Check that a complete snapshot has all sessions that messages named.

        Raises
        ------
        Inconsistent
            A message moved the expiry of an unexpired session that no page had: Redis had lost it.
        """
        for key, (expires_at, _) in self._moves.items():
            if expires_at > self._page_now:
                raise Inconsistent(f"the expiry of session {key!r} moved, but no page had the session")

    @property
    def awaited(self) -> int | None:
        """The revision that messages have yet to bring, if only messages are missing."""
        if not self._is_read or self.complete:
            return None
        return max(self._catalog_due, *(rev for rev, _ in self._unpassed), 0)

    @property
    def _is_read(self) -> bool:
        return self._cursor is None and not self._unread and not self._steps and self._catalog_read

    def _take_page(self, step: _Step, reply: SnapshotReply) -> None:
        if self.chain is None:
            self.chain = Chain(reply.rev, reply.id, reply.now)
            for change in self._early:
                self.message(change)
            self._early.clear()
        elif not self._check_position(self.chain, step, reply):
            self.restart()
            return
        self._page_rev = max(self._page_rev, reply.rev)
        self._page_now = max(self._page_now, reply.now)
        for state in reply.sessions:
            self._take_session(state)
        for key in reply.corrupt:
            if key not in self.sessions and key not in self._deleted:
                self.corrupt.add(key)
                self._moves.pop(key, None)
        if step.finds:
            self._cursor = reply.cursor if reply.cursor != "0" else None
            # A message or an earlier page has brought the others; messages keep them right.
            known, deleted = self.sessions, self._deleted
            self._unread += [key for key in reply.members if key not in known and key not in deleted]

    def _check_position(self, chain: Chain, step: _Step, reply: SnapshotReply) -> bool:
        """Compare a page's position with the chain; False if it is too old to compare."""
        position = (reply.rev, reply.id)
        passed = chain.passed(*position, step.since)
        if passed is False and (not self._unpassed or self._unpassed[-1] != position):
            self._unpassed.append(position)
        return passed is not None

    def _take_session(self, state: SessionState) -> None:
        key = state.session_key
        if key in self.sessions or key in self._deleted:
            return
        session = self._hold(state)
        move = self._moves.pop(key, None)
        # A page ahead of the message may have a later expiry; the message of that move is yet to come.
        self.sessions[key] = session if move is None else moved(session, *move)

    def _take_catalog(self, reply: CatalogReply) -> None:
        assert self.chain is not None, "the catalog is read after the first page"
        self._catalog_read = True
        self.environments = reply.environments
        if reply.rev > self.chain.start:
            # A message brings it, or has brought it or a later one. Otherwise it belongs to another history.
            self._catalog_due = reply.rev
            self._check_catalog(self.chain)
        elif self._catalog_rev == 0:
            self.catalog = reply.catalog

    def _check_catalog(self, chain: Chain) -> None:
        if self._catalog_rev < self._catalog_due <= chain.rev:
            raise Inconsistent(f"no message brought the catalog of revision {self._catalog_due}")

    # Messages

    def message(self, change: Change) -> None:
        """Take one message.

        Raises
        ------
        Inconsistent
            It is not the next one, or shows that a page was not of this history.
        """
        chain = self.chain
        if chain is None:
            self._early.append(change)
            return
        if not chain.accept(change):
            return
        if isinstance(change, SessionSet):
            key = change.session.session_key
            self.sessions[key] = self._hold(change.session)
            self.corrupt.discard(key)
            self._moves.pop(key, None)
        elif isinstance(change, SessionDeleted):
            self.sessions.pop(change.session_key, None)
            self._deleted.add(change.session_key)
            self.corrupt.discard(change.session_key)
            self._moves.pop(change.session_key, None)
        elif isinstance(change, ExpiryMoved):
            for key, expires_at, last_seen_at in change.sessions:
                session = self.sessions.get(key)
                if session is not None:
                    self.sessions[key] = moved(session, expires_at, last_seen_at)
                elif key not in self.corrupt:
                    self._moves[key] = (expires_at, last_seen_at)
        else:
            self.catalog = change.catalog
            self._catalog_rev = change.rev
        while self._unpassed and chain.passed(*self._unpassed[0]):
            self._unpassed.popleft()
        self._check_catalog(chain)
