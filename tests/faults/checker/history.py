"""The records of the checker's processes.

Times are seconds of CLOCK_MONOTONIC, which all processes of the machine share. A key is
``<project>/<environment>/<session key>``. Each process appends JSON lines to its own file. A reader skips a line that
SIGKILL cut off.

**Lost histories.** FLUSHALL, a restart without data and the promotion of a lagging replica set revisions back. So
revisions compare only within one era: the time between two losses. A loss happens at some instant of its fault. A
write certainly belongs to an era if no loss can have happened between its call and its return.
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
    "of_project",
    "read_records",
]

#: done: it waited and returned. committed: it returned at commit, or its wait failed. unknown: it may have been
#: applied, or may still be. failed: the error says that nothing was changed.
Outcome = Literal["done", "committed", "unknown", "failed"]


class Write(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="write"):
    """One write, as its caller saw it."""

    writer: str
    key: str
    #: names the state that it set; empty for a deletion
    token: str = ""
    #: digest of the whole state that it set
    digest: str = ""
    started: float
    ended: float
    outcome: Outcome
    #: the revision of the state or the deletion; 0 if unknown
    revision: int = 0
    #: whether a deletion found a session; None if unknown
    existed: bool | None = None
    #: seconds that it waited after the commit, if known
    effective_s: float | None = None
    detail: str = ""

    @property
    def deletes(self) -> bool:
        """Whether it is a deletion."""
        return not self.token


class Looks(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="looks"):
    """Consecutive look-ups of one key by one observer, with the same answer.

    One record loses nothing. An answer that is not too old for the last look-up, and not too new for the first, is
    right for all of them.
    """

    observer: str
    #: the view called itself fresh
    fresh: bool
    key: str
    #: 0: no session was found
    revision: int = 0
    token: str = ""
    digest: str = ""
    expires_at: int = 0
    count: int
    first_began: float
    first_ended: float
    last_began: float
    last_ended: float
    #: when the last began, in ms since 1970, by the clock that Redis reads
    last_began_ms: float


class Tally(Struct, frozen=True, kw_only=True, tag="tally"):
    """An observer's look-ups since its last tally, and how many of them the view refused as stale."""

    observer: str
    made: int
    refused: int


class Stall(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="stall"):
    """A process did not run for a while, because of a fault or a busy machine."""

    process: str
    started: float
    ended: float
    #: the projects that it concerns; none: all
    projects: tuple[str, ...] = ()


class Fault(Struct, frozen=True, kw_only=True, tag="fault"):
    """A fault: its kind, its target, its start and its end."""

    kind: str
    target: str
    started: float
    ended: float
    #: the part of the history that it may have lost: nothing, the last part, or all
    loses: Literal["nothing", "tail", "all"] = "nothing"
    #: whether Redis was unreachable, for the target or for all
    outage: bool = False
    detail: str = ""
    #: the projects that it concerns; none: all
    projects: tuple[str, ...] = ()
    #: processes that may have written to the part that is lost, also after the loss, from a time to another one
    strays: tuple[str, ...] = ()
    stray_from: float = 0.0
    stray_until: float = 0.0


class Stored(Struct, frozen=True, array_like=True):
    """One session, as a view or Redis holds it."""

    revision: int
    digest: str
    expires_at: int


class Contents(Struct, frozen=True, kw_only=True, tag="contents"):
    """The sessions of a view, or of Redis (`holder` is "redis"), after all faults and writes."""

    round: int
    holder: str
    environment: str
    revision: int
    fresh: bool = True
    #: Redis time, in ms, of the reading of Redis; unknown for a view
    read_at_ms: float = 0.0
    sessions: dict[str, Stored]


Record = Write | Looks | Tally | Stall | Fault | Contents

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def digest_of(
    label: str | None, scenario: str | None, overrides: Sequence[str], delay_ms: int, delay_max_ms: int
) -> str:
    """A digest of everything that a PUT sets."""
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
    """The instants of the losses, each known to within its fault's duration.

    Era 0 is before the first loss, era 1 between the first and the second, and so on.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        found = sorted((fault for fault in faults if fault.loses != "nothing"), key=lambda fault: fault.started)
        self._faults = found
        self._started = [fault.started for fault in found]
        self._ended = [fault.ended for fault in found]
        self._loses_all = [fault.loses == "all" for fault in found]
        for ended, started in zip(self._ended, self._started[1:], strict=False):
            assert ended <= started, "losses never overlap"

    @property
    def count(self) -> int:
        """The number of losses."""
        return len(self._started)

    def earliest_era(self, time: float) -> int:
        """The earliest era that a time can be in."""
        return bisect_right(self._ended, time)

    def latest_era(self, time: float) -> int:
        """The latest era that a time can be in."""
        return bisect_left(self._started, time)

    def survives(self, committed: int, era: int) -> bool:
        """Whether a write of one era may survive in a later one."""
        return not any(self._loses_all[committed:era])

    def first_era_of(self, write: Write) -> int:
        """The earliest era in which a write may have been committed."""
        era = self.earliest_era(write.started)
        for number, fault in enumerate(self._faults[:era]):
            together = write.started <= fault.stray_until and write.ended >= fault.stray_from
            if together and write.writer.startswith(fault.strays):
                return number
        return era

    def eras_of(self, write: Write) -> tuple[int, int]:
        """The eras in which a write may have been committed, first and last."""
        last = self.count if write.outcome == "unknown" else self.latest_era(write.ended)
        return self.first_era_of(write), last


def of_project(records: Iterable[Record], project: str) -> Iterator[Record]:
    """The records that concern one project. What is lost of one project says nothing about another."""
    for record in records:
        match record:
            case Write() | Looks():
                concerns = record.key.startswith(f"{project}/")
            case Contents():
                concerns = record.environment.startswith(f"{project}/")
            case Fault() | Stall():
                concerns = not record.projects or project in record.projects
            case Tally():
                concerns = f"/{project}/" in record.observer
        if concerns:
            yield record


class History:
    """All records of one run and one project, sorted.

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
        """The writes that set a state: several if it was set again."""
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
        """The writes that can have set a looked-up state."""
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
        """The TTL of a key's session, in seconds."""
        return self.ttl_s[key.split("/")[-2]]
