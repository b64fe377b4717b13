"""What must hold in every history; each validator is a pure function that returns what is wrong.

They are sound: where a history leaves open in which order things happened, they assume the order that is right. So what
they report is wrong in every order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .history import Contents, Fault, History, Looks, Stall, Write

__all__ = ["VALIDATORS", "Violation", "violations_of"]

#: The longest that a write may wait because of views, in leases: a view may renew once more without having applied the
#: write, a third of a lease after it, or a twentieth later than that.
LONGEST_WAIT_LEASES = 1 + 1 / 3 + 1 / 20
#: Seconds that the machine may add to that, beyond the stalls that were recorded.
WAIT_MARGIN_S = 0.5
#: Ms by which the two clocks that an expiry is checked by may differ: both are of one machine, and read at different
#: times.
CLOCK_MARGIN_MS = 20.0
#: The part of its TTL that a session lives at least after a PUT: one that changes nothing extends it only for a tenth
#: or more.
SHORTEST_LIFE = 0.9

#: Seconds of a TTL after which no session expires in the course of a run.
FOREVER_S = 3600.0

_Timed = Stall | Fault


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    rule: str
    #: what happened, for a person
    what: str
    key: str
    #: when it showed
    at: float
    who: str


@dataclass(slots=True)
class _Bindings:
    """Writes of one key in one era that returned after they had waited, by the time of their return."""

    ended: list[float] = field(default_factory=list)
    #: with each, the one of the highest revision so far, and the deletion that was called last
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
    """(a) A look-up that began after a write returned, on a view that called itself fresh, shows it or a later one."""
    bindings: defaultdict[tuple[str, int], _Bindings] = defaultdict(_Bindings)
    for write in sorted(history.writes, key=lambda write: write.ended):
        if write.outcome == "done":
            bindings[write.key, history.losses.earliest_era(write.started)].add(write)
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
            return None  # it may have expired
        if _may_be_deleted_after(history, highest, ended):
            return None
        return f"showed no session, after a write of {_named(highest)} had returned"
    sources = history.sources(looks)
    # A write that changed nothing returns the revision that set its state, maybe in an earlier era than its own.
    if highest is not None and (looks.revision, looks.token) != (highest.revision, highest.token):
        last_era = max((history.losses.eras_of(source)[1] for source in sources), default=history.losses.count)
        if (last_era, looks.revision) < (history.losses.earliest_era(highest.started), highest.revision):
            return f"showed revision {looks.revision}, after {_named(highest)} had returned"
    if deletion is not None and sources and all(_is_before(source, deletion) for source in sources):
        return f"showed revision {looks.revision}, after a later {_named(deletion)} had returned"
    return None


def no_view_goes_back(history: History) -> list[Violation]:
    """(b) What one observer sees of a session never goes back, but where the history itself did."""
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
    """How far an observer has come with one session: at least in this era, and there at this revision."""

    era: int = 0
    revision: int = 0
    #: what can have set that
    sources: Sequence[Write] = ()
    #: it saw the session gone after that revision
    gone: bool = False

    def step(self, history: History, looks: Looks) -> str | None:
        """Go on to what was looked up; says what is wrong where no order of what happened explains it."""
        latest = history.losses.latest_era(looks.first_ended)
        if not looks.revision:
            return self._lose(history, looks, latest)
        sources = history.sources(looks)
        if not sources:
            return None  # that is (c)
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
            return None  # it never was there, or it may have expired
        self.gone = True
        if latest > self.era or any(
            _may_be_deleted_after(history, source, looks.first_ended) for source in self.sources
        ):
            return None
        return f"showed revision {self.revision}, then no session, and nobody can have deleted it"


def every_state_was_committed(history: History) -> list[Violation]:
    """(c) A state that is served is one that a write has set, whole, at that revision."""
    found = []
    for looks in history.looks:
        if looks.revision and not history.sources(looks):
            wrote = history.writes_of_token.get(looks.token, [])
            what = f"showed {looks.token!r} as revision {looks.revision}, which "
            what += f"no write set; it was set by {', '.join(map(_named, wrote))}" if wrote else "nothing ever set"
            found.append(Violation("c: not committed", what, looks.key, looks.first_began, looks.observer))
    return found


def nothing_is_served_past_its_expiry(history: History) -> list[Violation]:
    """(d) No look-up that began after a session's expiry, in Redis time, shows it."""
    found = []
    for looks in history.looks:
        late_ms = looks.last_began_ms - looks.expires_at
        if looks.revision and late_ms > CLOCK_MARGIN_MS:
            what = f"showed revision {looks.revision} {late_ms:.0f} ms after its expiry"
            found.append(Violation("d: expired", what, looks.key, looks.last_began, looks.observer))
    return found


def every_view_ends_equal_to_redis(history: History) -> list[Violation]:
    """(e) Once all is healed and quiet, every view is fresh, and holds what Redis holds."""
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
    """The keys whose sessions differ. A view may have let one expire just before Redis was read."""
    differing = []
    for key in sorted(held.sessions.keys() | redis.sessions.keys()):
        here, there = held.sessions.get(key), redis.sessions.get(key)
        expires = here is None and there is not None and there.expires_at - redis.read_at_ms <= CLOCK_MARGIN_MS
        if here != there and not expires:
            differing.append(key)
    return differing


def no_write_waits_too_long(history: History) -> list[Violation]:
    """(f) No write waits longer than a lease and a third, plus a margin, because of views.

    The time that Redis, or what stands between it and the writer, was away is not the views' fault; nor is the time in
    which the machine did not run a process.
    """
    limit_s = LONGEST_WAIT_LEASES * history.lease_s + WAIT_MARGIN_S
    outages = [fault for fault in history.faults if fault.outage]
    found = []
    for write in history.writes:
        waited_s = write.ended - write.started if write.effective_s is None else write.effective_s
        gave_up = write.outcome == "committed" and write.detail != ""
        if waited_s <= limit_s and not gave_up:
            continue
        away_s = _overlap_s(outages, write)
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


#: By their letters.
VALIDATORS: Mapping[str, Callable[[History], list[Violation]]] = {
    "a": no_fresh_look_up_is_behind,
    "b": no_view_goes_back,
    "c": every_state_was_committed,
    "d": nothing_is_served_past_its_expiry,
    "e": every_view_ends_equal_to_redis,
    "f": no_write_waits_too_long,
}


def violations_of(history: History) -> list[Violation]:
    """Everything that is wrong."""
    return [violation for validate in VALIDATORS.values() for violation in validate(history)]


def _is_before(one: Write, other: Write) -> bool:
    """Whether one write was certainly committed before another."""
    return one.outcome in ("done", "committed") and one.ended < other.started


def _may_be_deleted_after(history: History, write: Write, time: float) -> bool:
    """Whether a deletion may have followed on a write by then."""
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
    """Seconds of a write during which any of these was."""
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
