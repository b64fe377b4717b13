"""What a replica builds while it syncs, from pages of the index and from messages, and the proof that they agree.

**The chain.** From the position that the first page names, each message continues the one before: ``rev`` one higher,
``prev`` equal to the id. So the messages since then are complete, and belong to one history.

**The pages.** Each page names the position that it was read at. That may lie ahead of the messages received so far, or
behind. The snapshot is complete once the chain has passed through the positions of all pages, with equal ids: then each
was read from the history that the messages tell, and not from one that Redis has lost since.

**The merge.** A session that a message has set or deleted since the first page is as the messages say, whatever a page
says. Any other has had no change but of its expiry, so the page has the rest of it, and the expiry is as the last
message says, if one spoke of it. Nothing of this is served before the snapshot is complete: until then, a message may
take back what a page ahead of it has shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..catalog.model import Catalog
from ..protocol import calls
from ..protocol.calls import READ_BATCH, Call
from ..protocol.keyspace import EnvironmentKeyspace
from ..protocol.messages import Change, ExpiryMoved, SessionDeleted, SessionSet, SessionState
from ..protocol.replies import CatalogReply, SnapshotReply
from .chain import Chain, Inconsistent
from .held_session import HeldSession, moved

#: Messages that are kept before the first page says where the chain begins. The oldest make room: if one of them was
#: needed after all, the chain has a gap, which shows.
EARLY_MESSAGES = 4096


class Snapshot:
    """One sync: ask for the calls, bring the answers and the messages, until it is `complete`.

    Parameters
    ----------
    keyspace : EnvironmentKeyspace
        The environment.
    catalog_call : Call, optional
        How to read the catalog; without it, only messages tell of it.
    hold : callable
        Makes a session of its state.
    """

    __slots__ = (
        "_asked",
        "_catalog_call",
        "_catalog_due",
        "_catalog_rev",
        "_cursor",
        "_deleted",
        "_early",
        "_finding",
        "_hold",
        "_keyspace",
        "_moves",
        "_page_now",
        "_page_rev",
        "_scanning",
        "_unpassed",
        "_unread",
        "catalog",
        "chain",
        "sessions",
    )

    def __init__(
        self, keyspace: EnvironmentKeyspace, catalog_call: Call[Any] | None, hold: Callable[[SessionState], HeldSession]
    ) -> None:
        self._keyspace = keyspace
        self._hold = hold
        #: where the chain stands; None until the first page says where it begins
        self.chain: Chain | None = None
        self.sessions: dict[str, HeldSession] = {}
        self.catalog: Catalog | None = None
        self._early: deque[Change] = deque(maxlen=EARLY_MESSAGES)
        #: what messages said of sessions before a page has shown them: that they were deleted; expiresAt and lastSeenAt
        self._deleted: set[str] = set()
        self._moves: dict[str, tuple[int, int]] = {}
        #: positions of pages that the chain has yet to pass through
        self._unpassed: deque[tuple[int, str]] = deque()
        #: where and when the last page was read
        self._page_rev = 0
        self._page_now = 0
        self._cursor = "0"
        self._scanning = True
        self._unread: list[str] = []
        #: the step in flight: the keys that it reads, and whether it also finds members
        self._asked: list[str] = []
        self._finding = False
        #: the call that reads the catalog, until it has been answered; the revisions that a message has set it at, and
        #: must set it at before the snapshot is complete
        self._catalog_call = catalog_call
        self._catalog_rev = 0
        self._catalog_due = 0

    # Calls and answers

    def next_call(self) -> Call[Any] | None:
        """The call to run next; its answer goes to `answered` before another one is asked for."""
        if self.chain is not None and self._catalog_call is not None:
            # After the first page and not after the last: the pages prove which history it was read from.
            return self._catalog_call
        if not (self._scanning or self._unread):
            return None
        self._asked = self._unread[:READ_BATCH]
        self._finding = self._scanning and len(self._unread) <= READ_BATCH
        count = READ_BATCH if self._finding else 0
        return calls.snapshot(self._keyspace, self._cursor, self._asked, count=count)

    def answered(self, reply: Any) -> None:
        """Take the answer.

        Raises
        ------
        Inconsistent
            It does not belong to the history that the chain tells.
        """
        if isinstance(reply, CatalogReply):
            self._take_catalog(reply)
        else:
            self._take_page(reply)

    def restart(self) -> None:
        """Look through the index anew: a cursor is worth nothing to another process than the one that gave it.

        The sessions that were read remain, and are not read again.
        """
        self._cursor = "0"
        self._scanning = True
        self._unread = []

    @property
    def complete(self) -> bool:
        """Whether the sessions and the catalog are as they were at the chain's position."""
        return (
            self.chain is not None
            and self._catalog_call is None
            and not (self._scanning or self._unread or self._unpassed)
            and self._catalog_due <= self._catalog_rev
        )

    def verify(self) -> None:
        """Check that a complete snapshot has all sessions that messages spoke of.

        Raises
        ------
        Inconsistent
            One whose expiry moved was not found, although it can't have expired yet: where it was looked for, Redis had
            lost that.
        """
        for key, (expires_at, _) in self._moves.items():
            if expires_at > self._page_now:
                raise Inconsistent(f"the session {key!r} lives longer, and was not found")

    @property
    def awaited(self) -> int | None:
        """The revision that messages have yet to bring, where only they are missing."""
        if self._scanning or self._unread or self._catalog_call is not None or self.complete:
            return None
        return max(self._catalog_due, self._unpassed[-1][0] if self._unpassed else 0)

    def _take_page(self, reply: SnapshotReply) -> None:
        if self.chain is None:
            self.chain = Chain(reply.rev, reply.id, reply.now)
            self._page_rev = reply.rev
            for change in self._early:
                self.message(change)
            self._early.clear()
        elif not self._check_position(self.chain, reply.rev, reply.id):
            self.restart()
            return
        self._page_now = reply.now
        for state in reply.sessions:
            self._take_session(state)
        del self._unread[: len(self._asked)]
        # Those that are known already have come by a message or with an earlier page; messages keep them right.
        known, deleted = self.sessions, self._deleted
        self._unread += [key for key in reply.members if key not in known and key not in deleted]
        if self._finding:
            self._cursor = reply.cursor
            self._scanning = reply.cursor != "0"

    def _check_position(self, chain: Chain, rev: int, page_id: str) -> bool:
        """Hold a page's position against the chain; False where it is too old to tell."""
        if rev < self._page_rev:
            raise Inconsistent(
                f"Redis went back from revision {self._page_rev} to {rev}: it has lost part of its history"
            )
        self._page_rev = rev
        passed = chain.passed(rev, page_id)
        if passed is False and (not self._unpassed or self._unpassed[-1] != (rev, page_id)):
            self._unpassed.append((rev, page_id))
        return passed is not None

    def _take_session(self, state: SessionState) -> None:
        key = state.session_key
        if key in self.sessions or key in self._deleted:
            return
        session = self._hold(state)
        move = self._moves.pop(key, None)
        # A page ahead of the message may have a later expiry; then the message of that one is yet to come.
        self.sessions[key] = session if move is None else moved(session, *move)

    def _take_catalog(self, reply: CatalogReply) -> None:
        assert self.chain is not None, "the catalog is read after the first page"
        self._catalog_call = None
        if reply.rev > self.chain.start:
            # A message brings it, or has brought it or a later one; without one it is of another history.
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
            self._moves.pop(key, None)
        elif isinstance(change, SessionDeleted):
            self.sessions.pop(change.session_key, None)
            self._deleted.add(change.session_key)
            self._moves.pop(change.session_key, None)
        elif isinstance(change, ExpiryMoved):
            for key, expires_at, last_seen_at in change.sessions:
                session = self.sessions.get(key)
                if session is not None:
                    self.sessions[key] = moved(session, expires_at, last_seen_at)
                else:
                    self._moves[key] = (expires_at, last_seen_at)
        else:
            self.catalog = change.catalog
            self._catalog_rev = change.rev
        while self._unpassed and chain.passed(*self._unpassed[0]):
            self._unpassed.popleft()
        self._check_catalog(chain)
