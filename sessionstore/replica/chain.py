"""The chain of revisions: whether a message or a position that Redis names belongs to the history followed so far."""

from __future__ import annotations

from collections import deque

from ..protocol.messages import Change

#: Revisions whose ids are kept, to compare positions that Redis names with the chain.
KNOWN_REVISIONS = 1024


class Inconsistent(Exception):  # noqa: N818  a replica turns it into a resync
    """What was received does not fit together."""


class Chain:
    """A position in an environment's history, and the ids that led to it."""

    __slots__ = ("_ids", "_read_at", "_start", "rev")

    def __init__(self, rev: int, head_id: str, read_at: int) -> None:
        self.rev = rev
        self._ids = deque((head_id,), maxlen=KNOWN_REVISIONS)
        self._start = rev
        self._read_at = read_at

    @property
    def start(self) -> int:
        """The revision that Redis was at when the chain began."""
        return self._start

    @property
    def id(self) -> str:
        """The id of the write at the position."""
        return self._ids[-1]

    def continues(self, change: Change) -> bool:
        """Whether the change is the next one of this history."""
        return change.rev == self.rev + 1 and change.prev == self._ids[-1]

    def is_late(self, change: Change) -> bool:
        """Whether the change was committed before the chain began, and so is contained in what was read."""
        return (
            self.rev == self._start
            and change.at <= self._read_at
            and (change.rev < self.rev or (change.rev == self.rev and change.id == self._ids[-1]))
        )

    def accept(self, change: Change) -> bool:
        """Go on to the change; False where it is late.

        Raises
        ------
        Inconsistent
            It is not the next one.
        """
        if not self.continues(change):
            if self.is_late(change):
                return False
            if change.rev != self.rev + 1:
                raise Inconsistent(f"revision {change.rev} was published, after revision {self.rev}")
            raise Inconsistent(
                f"revision {change.rev} does not follow on the one before: Redis has lost part of its history"
            )
        self.rev = change.rev
        self._ids.append(change.id)
        return True

    def passed(self, rev: int, write_id: str) -> bool | None:
        """Whether the chain has passed a position that Redis named: False if it is yet to come, None if it is too old.

        Raises
        ------
        Inconsistent
            The chain has another id at that revision.
        """
        if rev > self.rev:
            return False
        index = len(self._ids) - 1 - (self.rev - rev)
        if index < 0:
            return None
        if self._ids[index] != write_id:
            raise Inconsistent(f"Redis has another revision {rev} than was published: it has lost part of its history")
        return True
