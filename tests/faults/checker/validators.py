"""The rules of every history. Each validator is a pure function that returns the violations of one rule.

They are sound: if a history allows several orders of events, they assume a correct one. So a reported violation is one
in every order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .history import Contents, Fault, History, Looks, Stall, Write

__all__ = ["VALIDATORS", "Violation", "violations_of"]

#: The longest wait of a write for views, in leases. A view may renew once more before it applies the write: a third of
#: a lease after it, or a twentieth later.
LONGEST_WAIT_LEASES = 1 + 1 / 3 + 1 / 20
#: Seconds that the machine may add to it, beyond the recorded stalls.
WAIT_MARGIN_S = 0.5
#: Ms between the two readings of the clock that an expiry is checked by.
CLOCK_MARGIN_MS = 20.0
#: The least part of its TTL that a session lives after a PUT. A PUT that changes nothing extends the life only by a
#: tenth or more.
SHORTEST_LIFE = 0.9

#: Seconds; a session with a longer TTL never expires during a run.
FOREVER_S = 3600.0

_Timed = Stall | Fault


@dataclass(frozen=True, slots=True)
class Violation:
    """A violation of one rule."""

    rule: str
    #: what happened, in words
    what: str
    key: str
    #: when it was observed
    at: float
    who: str


@dataclass(slots=True)
class _Bindings:
    """Writes of one key in one era that waited and returned, by the time of their return."""

    ended: list[float] = field(default_factory=list)
    #: for each, the write of the highest revision so far, and the last deletion
    highest: list[Write | None] = field(default_factory=list)
    last_deletion: list[Write | None] = field(default_factory=list)

    def add(self, write: Write) -> None:
        highest = self.highest[-1] if self.highest else None
        deletion = self.last_deletion[-1] if self.last_deletion else None
        if write.revision and (highest is None or write.revision > highest.revision):
            highest = write
        if write.deletes and (deletion is None or write.started > deletion.started):
            deletion = write
        self.ended.append(write.ended)
        self.highest.append(highest)
        self.last_deletion.append(deletion)

    def before(self, time: float) -> tuple[Write | None, Write | None]:
        index = bisect_right(self.ended, time) - 1
        return (None, None) if index < 0 else (self.highest[index], self.last_deletion[index])


def no_fresh_look_up_is_behind(history: History) -> list[Violation]:
    """(a) On a fresh view, a look-up that began after a write returned shows that write or a later one."""
    bindings: defaultdict[tuple[str, int], _Bindings] = defaultdict(_Bindings)
    for write in sorted(history.writes, key=lambda write: write.ended):
        if write.outcome == "done":
            bindings[write.key, history.losses.first_era_of(write)].add(write)
    found = []
    for looks in history.looks:
        if not looks.fresh:
            continue
        instants = [(looks.last_began, looks.last_ended)]
        era = history.losses.latest_era
        if era(looks.first_ended) != era(looks.last_ended):
            instants.append((looks.first_began, looks.first_ended))
        for began, ended in instants:
            wrote = bindings.get((looks.key, era(ended)))
            if wrote is None:
                continue
            highest, deletion = wrote.before(began)
            behind = _how_it_is_behind(history, looks, began, ended, highest, deletion)
            if behind is not None:
                found.append(Violation("a: behind a write that had returned", behind, looks.key, began, looks.observer))
    return found


def _how_it_is_behind(
    history: History, looks: Looks, began: float, ended: float, highest: Write | None, deletion: Write | None
) -> str | None:
    if not looks.revision:
        if highest is None or highest.deletes:
            return None
        if ended >= highest.started + SHORTEST_LIFE * history.ttl_s_of(looks.key):
            return None  # the session may have expired
        if _may_be_deleted_after(history, highest, ended):
            return None
        return f"showed no session, after a write of {_named(highest)} had returned"
    sources = history.sources(looks)
    # A write that changed nothing returns the revision that set its state, perhaps in an earlier era.
    if highest is not None and (looks.revision, looks.token) != (highest.revision, highest.token):
        last_era = max((history.losses.eras_of(source)[1] for source in sources), default=history.losses.count)
        if (last_era, looks.revision) < (history.losses.first_era_of(highest), highest.revision):
            return f"showed revision {looks.revision}, after {_named(highest)} had returned"
    if deletion is not None and sources and all(_is_before(source, deletion) for source in sources):
        return f"showed revision {looks.revision}, after a later {_named(deletion)} had returned"
    return None


def no_view_goes_back(history: History) -> list[Violation]:
    """(b) For one observer, a session never goes back, unless the history did."""
    found = []
    seen: dict[tuple[str, str], _Seen] = {}
    for looks in history.looks:
        place = seen.setdefault((looks.observer, looks.key), _Seen())
        what = place.step(history, looks)
        if what is not None:
            found.append(Violation("b: went back", what, looks.key, looks.first_began, looks.observer))
    return found


@dataclass(slots=True)
class _Seen:
    """An observer's last state of one session: its earliest era, and its revision there."""

    era: int = 0
    revision: int = 0
    #: the writes that can have set it
    sources: Sequence[Write] = ()
    #: whether it found no session after that revision
    gone: bool = False

    def step(self, history: History, looks: Looks) -> str | None:
        """Advance to the next look-up; return a message if no order of the events explains it."""
        latest = history.losses.latest_era(looks.first_ended)
        if not looks.revision:
            return self._lose(history, looks, latest)
        sources = history.sources(looks)
        if not sources:
            return None  # rule (c) reports this
        eras = [history.losses.eras_of(source) for source in sources]
        first, last = min(era[0] for era in eras), max(era[1] for era in eras)
        before = f"revision {self.revision}{', gone' if self.gone else ''}, of era {self.era} or later"
        if first > self.era:
            self.era = first
        elif looks.revision < self.revision + self.gone:
            self.era += 1
        self.revision, self.sources, self.gone = looks.revision, sources, False
        if self.era <= latest and history.losses.survives(min(last, self.era), self.era):
            return None
        return (
            f"showed {before}, then revision {looks.revision} of era {first} to {last}, in era {latest} at the latest"
        )

    def _lose(self, history: History, looks: Looks, latest: int) -> str | None:
        if not self.revision or self.gone or history.ttl_s_of(looks.key) < FOREVER_S:
            return None  # the session never existed, or may have expired
        self.gone = True
        if latest > self.era or any(
            _may_be_deleted_after(history, source, looks.first_ended) for source in self.sources
        ):
            return None
        return f"showed revision {self.revision}, then no session, and no deletion explains it"


def every_state_was_committed(history: History) -> list[Violation]:
    """(c) A served state is exactly the state that one write set at that revision."""
    found = []
    for looks in history.looks:
        if looks.revision and not history.sources(looks):
            wrote = history.writes_of_token.get(looks.token, [])
            what = f"showed {looks.token!r} as revision {looks.revision}, which "
            what += f"no write set; it was set by {', '.join(map(_named, wrote))}" if wrote else "nothing ever set"
            found.append(Violation("c: not committed", what, looks.key, looks.first_began, looks.observer))
    return found


def nothing_is_served_past_its_expiry(history: History) -> list[Violation]:
    """(d) No look-up shows a session after its expiry, in Redis time."""
    found = []
    for looks in history.looks:
        late_ms = looks.last_began_ms - looks.expires_at
        if looks.revision and late_ms > CLOCK_MARGIN_MS:
            what = f"showed revision {looks.revision} {late_ms:.0f} ms after its expiry"
            found.append(Violation("d: expired", what, looks.key, looks.last_began, looks.observer))
    return found


def every_view_ends_equal_to_redis(history: History) -> list[Violation]:
    """(e) After all faults and writes, every view is fresh and equals Redis."""
    truth = {(one.round, one.environment): one for one in history.contents if one.holder == "redis"}
    found = []
    for held in history.contents:
        if held.holder == "redis":
            continue
        redis = truth[held.round, held.environment]
        what = None
        if not held.fresh:
            what = "is not fresh"
        elif held.revision != redis.revision:
            what = f"is at revision {held.revision}, and Redis at {redis.revision}"
        elif keys := _differences(held, redis):
            what = f"differs from Redis at {', '.join(keys)}"
        if what is not None:
            what = f"after round {held.round} the view {what}"
            found.append(Violation("e: not equal after healing", what, held.environment, 0.0, held.holder))
    return found


def _differences(held: Contents, redis: Contents) -> list[str]:
    """The keys whose sessions differ. A session may have expired between the readings of the view and of Redis."""
    differing = []
    for key in sorted(held.sessions.keys() | redis.sessions.keys()):
        here, there = held.sessions.get(key), redis.sessions.get(key)
        expires = here is None and there is not None and there.expires_at - redis.read_at_ms <= CLOCK_MARGIN_MS
        if here != there and not expires:
            differing.append(key)
    return differing


def no_write_waits_too_long(history: History) -> list[Violation]:
    """(f) No write waits longer than a lease and a third, plus a margin, because of views.

    The views do not answer for the time in which Redis or the link to it was down, or in which a process did not run.
    """
    limit_s = LONGEST_WAIT_LEASES * history.lease_s + WAIT_MARGIN_S
    outages = [fault for fault in history.faults if fault.outage]
    found = []
    for write in history.writes:
        waited_s = write.ended - write.started if write.effective_s is None else write.effective_s
        gave_up = write.outcome == "committed" and write.detail != ""
        if waited_s <= limit_s and not gave_up:
            continue
        away_s = _overlap_s((outage for outage in outages if outage.target in write.writer), write)
        own = [fault for fault in history.faults if fault.target and fault.target in write.writer]
        excused_s = away_s + (history.lease_s if away_s else 0.0) + _overlap_s(own, write)
        excused_s += _overlap_s(history.stalls, write)
        if gave_up and away_s:
            continue
        if waited_s > limit_s + excused_s or gave_up:
            what = f"waited {waited_s:.3f} s, more than {limit_s + excused_s:.3f} s" + (
                write.detail and f": {write.detail}"
            )
            found.append(Violation("f: waited too long", what, write.key, write.ended, write.writer))
    return found


#: The validators by their letters.
VALIDATORS: Mapping[str, Callable[[History], list[Violation]]] = {
    "a": no_fresh_look_up_is_behind,
    "b": no_view_goes_back,
    "c": every_state_was_committed,
    "d": nothing_is_served_past_its_expiry,
    "e": every_view_ends_equal_to_redis,
    "f": no_write_waits_too_long,
}


def violations_of(history: History) -> list[Violation]:
    """All violations."""
    return [violation for validate in VALIDATORS.values() for violation in validate(history)]


def _is_before(one: Write, other: Write) -> bool:
    """Whether one write certainly committed before another."""
    return one.outcome in ("done", "committed") and one.ended < other.started


def _may_be_deleted_after(history: History, write: Write, time: float) -> bool:
    """Whether a deletion may have followed a write by this time."""
    era = history.losses.eras_of(write)
    for deletion in history.deletions_of_key.get(write.key, ()):
        if deletion.started > time:
            break
        same_era = era[0] == era[1] and history.losses.eras_of(deletion) == era
        if _is_before(deletion, write) or (same_era and 0 < deletion.revision < write.revision):
            continue
        return True
    return False


def _overlap_s(times: Iterable[_Timed], write: Write) -> float:
    """Seconds of a write that these spans cover."""
    spans = sorted(
        (max(time.started, write.started), min(time.ended, write.ended))
        for time in times
        if time.started < write.ended and time.ended > write.started
    )
    covered_s, reached = 0.0, write.started
    for started, ended in spans:
        covered_s += max(0.0, ended - max(started, reached))
        reached = max(reached, ended)
    return covered_s


def _named(write: Write) -> str:
    what = "deletion" if write.deletes else f"{write.token!r}"
    return f"{what} (revision {write.revision or 'unknown'}, {write.outcome}, by {write.writer})"
