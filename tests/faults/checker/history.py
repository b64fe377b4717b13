"""What the processes of the checker record.

Times are seconds of CLOCK_MONOTONIC, which all processes of the machine share. A key is ``<environment>/<session
key>``. Each process appends JSON lines to a file of its own; a line that was cut off by SIGKILL is left out.

**Histories that are lost.** FLUSHALL, a restart without data and the promotion of a lagging replica take revisions
back, so revisions compare only within one era: the time between two such losses. A loss happens at some instant of its
fault. A write is of an era for certain where no loss can have come between its call and its return.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

import msgspec
from msgspec import Struct

__all__ = [
    "Contents",
    "Fault",
    "History",
    "Losses",
    "Looks",
    "Recorder",
    "Stall",
    "Stored",
    "Tally",
    "Write",
    "digest_of",
    "read_records",
]

#: done: it returned, and had waited. committed: it returned without waiting, or the wait failed. unknown: it may have
#: been applied, or may yet be. failed: the error says that nothing was changed.
Outcome = Literal["done", "committed", "unknown", "failed"]


class Write(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="write"):
    """One write, as its caller saw it."""

    writer: str
    key: str
    #: names the state that it set; empty for a deletion
    token: str = ""
    #: of the whole state that it set
    digest: str = ""
    started: float
    ended: float
    outcome: Outcome
    #: the revision of the state, or of the deletion; 0 where it is not known
    revision: int = 0
    #: of a deletion: whether there was a session; None where that is not known
    existed: bool | None = None
    #: seconds that it waited after the commit, where that is known
    effective_s: float | None = None
    detail: str = ""

    @property
    def deletes(self) -> bool:
        """Whether it is a deletion."""
        return not self.token


class Looks(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="looks"):
    """Look-ups of one key by one observer, one after another, that had the same answer.

    Nothing is lost by that: an answer that is right at the last of them as far as being behind goes, and at the first
    as far as being ahead goes, is right at all of them.
    """

    observer: str
    #: they called themselves fresh
    fresh: bool
    key: str
    #: 0: there was no session
    revision: int = 0
    token: str = ""
    digest: str = ""
    expires_at: int = 0
    count: int
    first_began: float
    first_ended: float
    last_began: float
    last_ended: float
    #: ms since 1970 at which the last began, by the clock that Redis has too
    last_began_ms: float


class Tally(Struct, frozen=True, kw_only=True, tag="tally"):
    """How many look-ups an observer has made since its last tally, and how many of them were refused as stale."""

    observer: str
    made: int
    refused: int


class Stall(Struct, frozen=True, kw_only=True, tag="stall"):
    """A process was not run for a while: by a fault, or since the machine was busy."""

    process: str
    started: float
    ended: float


class Fault(Struct, frozen=True, kw_only=True, tag="fault"):
    """What was done, to whom, and from when to when."""

    kind: str
    target: str
    started: float
    ended: float
    #: which part of the history it may have taken: nothing, what came last, or all
    loses: Literal["nothing", "tail", "all"] = "nothing"
    #: whether Redis was away
    outage: bool = False
    detail: str = ""


class Stored(Struct, frozen=True, array_like=True):
    """One session, as a view or Redis holds it."""

    revision: int
    digest: str
    expires_at: int


class Contents(Struct, frozen=True, kw_only=True, tag="contents"):
    """What a view, or Redis itself (`holder` is "redis"), held when all was healed and quiet."""

    round: int
    holder: str
    environment: str
    revision: int
    fresh: bool = True
    #: Redis time, in ms, as Redis was read; a view's is not known
    read_at_ms: float = 0.0
    sessions: dict[str, Stored]


Record = Write | Looks | Tally | Stall | Fault | Contents

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def digest_of(
    label: str | None, scenario: str | None, overrides: Sequence[str], delay_ms: int, delay_max_ms: int
) -> str:
    """The whole of what a PUT sets, in a few digits."""
    return f"{zlib.crc32(repr((label, scenario, tuple(overrides), delay_ms, delay_max_ms)).encode()):08x}"


class Recorder:
    """Appends records to a file, from any thread. Each `flush` leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("ab", buffering=1 << 20)
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        with self._lock:
            self._file.write(_encode(record) + b"\n")

    def flush(self) -> None:
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()


def read_records(folder: Path) -> Iterator[Record]:
    """Every record of a run, file by file."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield _decode(line)


class Losses:
    """The instants at which a part of the history was lost, each known to within a fault's time.

    Era 0 is before the first, era 1 between the first and the second, and so on.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        found = sorted((fault for fault in faults if fault.loses != "nothing"), key=lambda fault: fault.started)
        self._started = [fault.started for fault in found]
        self._ended = [fault.ended for fault in found]
        self._loses_all = [fault.loses == "all" for fault in found]
        for ended, started in zip(self._ended, self._started[1:], strict=False):
            assert ended <= started, "losses never overlap"

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._started)

    def earliest_era(self, time: float) -> int:
        """The era at a time, at the earliest."""
        return bisect_right(self._ended, time)

    def latest_era(self, time: float) -> int:
        """The era at a time, at the latest."""
        return bisect_left(self._started, time)

    def survives(self, committed: int, era: int) -> bool:
        """Whether something committed in an era may be there in a later one."""
        return not any(self._loses_all[committed:era])

    def eras_of(self, write: Write) -> tuple[int, int]:
        """The eras in which a write may have been committed, first and last."""
        last = self.count if write.outcome == "unknown" else self.latest_era(write.ended)
        return self.earliest_era(write.started), last


class History:
    """All records of one run, sorted.

    Parameters
    ----------
    records : iterable
        In any order.
    lease_s : float
        How long a lease lasts.
    ttl_s : dict
        How long a session lives, by environment.
    """

    def __init__(self, records: Iterable[Record], *, lease_s: float, ttl_s: dict[str, float]) -> None:
        self.lease_s = lease_s
        self.ttl_s = ttl_s
        self.writes: list[Write] = []
        self.looks: list[Looks] = []
        self.tallies: list[Tally] = []
        self.stalls: list[Stall] = []
        self.faults: list[Fault] = []
        self.contents: list[Contents] = []
        for record in records:
            match record:
                case Write():
                    self.writes.append(record)
                case Looks():
                    self.looks.append(record)
                case Tally():
                    self.tallies.append(record)
                case Stall():
                    self.stalls.append(record)
                case Fault():
                    self.faults.append(record)
                case Contents():
                    self.contents.append(record)
        self.writes.sort(key=lambda write: write.started)
        self.looks.sort(key=lambda looks: looks.first_began)
        self.losses = Losses(self.faults)

    @cached_property
    def writes_of_token(self) -> dict[str, list[Write]]:
        """The writes that set a state; more than one where it was set again."""
        found = defaultdict(list)
        for write in self.writes:
            if write.token:
                found[write.token].append(write)
        return dict(found)

    @cached_property
    def deletions_of_key(self) -> dict[str, list[Write]]:
        """The deletions that may have removed a session."""
        found = defaultdict(list)
        for write in self.writes:
            if write.deletes and write.outcome != "failed" and write.existed is not False:
                found[write.key].append(write)
        return dict(found)

    def sources(self, looks: Looks) -> list[Write]:
        """The writes that can have set what was looked up."""
        return [
            write
            for write in self.writes_of_token.get(looks.token, ())
            if write.key == looks.key
            and write.digest == looks.digest
            and write.outcome != "failed"
            and write.revision in (0, looks.revision)
            and write.started <= looks.first_ended
        ]

    def ttl_s_of(self, key: str) -> float:
        """Seconds that a session of this key lives."""
        return self.ttl_s[key.partition("/")[0]]
