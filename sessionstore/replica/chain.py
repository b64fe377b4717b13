"""The chain of revisions: whether a message, or a position that Redis names, belongs to the history followed so far."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ..protocol.messages import Change

#: Revisions whose ids are kept, to compare positions that Redis names with the chain.
KNOWN_REVISIONS = 1024


class Inconsistent(Exception):  # noqa: N818  a follower turns it into a resync
    """Messages and replies contradict each other."""


class Position(NamedTuple):
    """A place in an environment's history: a revision, and the id of the write that made it."""

    rev: int
    id: str


class Chain:
    """A position in an environment's history, and the ids and epochs of the changes that led to it.

    Parameters
    ----------
    rev, head_id : int, str
        The head that Redis returned when the chain began.
    read_at : int
        When, in Redis time.
    """

    def __init__(self, rev: int, head_id: str, read_at: int) -> None:
        self.start = self.rev = rev
        self._ids = deque((head_id,), maxlen=KNOWN_REVISIONS)
        self._read_at = read_at
        #: the epoch of the newest change, and the first revision of the unbroken run of changes that share it
        self._epoch = ""
        self._epoch_since = rev + 1

    @property
    def id(self) -> str:
        """The id of the write at the position."""
        return self._ids[-1]

    @property
    def position(self) -> Position:
        """Where the chain stands."""
        return Position(self.rev, self.id)

    def continues(self, change: Change) -> bool:
        """Whether the change is the next one of this history."""
        return change.rev == self.rev + 1 and change.prev == self.id

    def is_late(self, change: Change) -> bool:
        """Whether the change was committed before the chain began, so that the first page contains it."""
        return (
            self.rev == self.start
            and change.at <= self._read_at
            and (change.rev < self.rev or (change.rev == self.rev and change.id == self.id))
        )

    def accept(self, change: Change) -> bool:
        """Advance to the change; False if it is late.

        Raises
        ------
        Inconsistent
            It is not the next one.
        """
        if not self.continues(change):
            if self.is_late(change):
                return False
            if change.rev != self.rev + 1:
                raise Inconsistent(f"Redis published revision {change.rev} after revision {self.rev}")
            raise Inconsistent(f"Redis published revision {change.rev} of another history: {_LOST}")
        self.rev = change.rev
        self._ids.append(change.id)
        if change.epoch != self._epoch:
            self._epoch, self._epoch_since = change.epoch, change.rev
        return True

    def passed(self, rev: int, write_id: str, since: int = 0) -> bool | None:
        """Whether the chain has passed a position that Redis named: False if not yet, None if the position is too old.

        Parameters
        ----------
        rev, write_id : int, str
            The position.
        since : int
            The chain's revision when Redis was asked. A lower `rev` proves that Redis has lost history, even if the
            chain contains that position.

        Raises
        ------
        Inconsistent
            Redis is at another history.
        """
        if rev < since:
            raise Inconsistent(f"Redis went back from revision {since} to {rev}: {_LOST}")
        if rev > self.rev:
            return False
        index = len(self._ids) - 1 - (self.rev - rev)
        if index < 0:
            return None
        if self._ids[index] != write_id:
            raise Inconsistent(f"Redis has another revision {rev} than it published: {_LOST}")
        return True

    def is_of_epoch(self, epoch: str, after: int) -> bool:
        """Whether each change after the revision `after` was published in this epoch."""
        return self.rev <= after or (self._epoch == epoch and self._epoch_since <= after + 1)


_LOST = "it has lost part of its history"
