"""The operations of a store, as generators: they yield the steps to take and receive the results.

The drivers only run the steps. Every decision is made here. An error of a step is thrown into the generator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ..errors import (
    InvalidInputError,
    NotDurableError,
    NotEffectiveError,
    NotFoundError,
    SessionStoreError,
    StoreUnavailableError,
    TooFewViewsError,
)
from ..paging import decode_cursor, encode_cursor, validate_limit
from ..session import (
    Deletion,
    Effect,
    LiveCounts,
    LiveView,
    LiveViews,
    Session,
    SessionDetails,
    SessionPage,
    validate_key_prefix,
)
from . import calls
from .calls import Call, DurableCall, Replicated, Terms, WriteContext
from .keyspace import EnvironmentKeyspace, ProjectKeyspace
from .messages import Applied
from .replies import (
    CatalogReply,
    IndexPage,
    LeaseStatusReply,
    SessionsReply,
    StoredSession,
    ViewsReply,
    WriteReply,
    decode_view_info,
    session_from_state,
    unknown_environment,
)

#: Seconds between two looks at the leases while a writer waits, at first and at most. Usually a message ends the wait;
#: the looks are for messages that are lost.
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5

#: Looks at the index for one page of a list: they pass over some thousand members whose sessions have expired.
_MAX_LOOKS = 20

#: The longest wait for views, in leases: without having applied the write, a view may renew once more, a third of a
#: lease after it or a twentieth later (scripts/renew.lua).
_LONGEST_WAIT_LEASES = 1 + 1 / 3 + 1 / 20

#: Seconds beyond that after which a wait is given up.
_PATIENCE_S = 1.0

_STOPPED = "Redis then stopped answering; repeat the call, which is safe."
_OUTLASTED = (
    "a view's lease outlasted the longest wait, as when Redis's clock is set back or leases differ in length; "
    "see sessionstore views, and repeat the call."
)
_LOST = "Redis was emptied, restarted or replaced meanwhile and may have lost it; repeat the call, which is safe."


@dataclass(frozen=True, slots=True)
class AwaitApplied:
    """Wait until an `Applied` message names `rev` or a later one, or for `timeout_s`; the result is it, or None.

    A message of the last `sent_s` seconds counts too: since the write was sent.
    """

    keyspace: EnvironmentKeyspace
    rev: int
    timeout_s: float
    sent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Let some time pass; the result is None."""

    seconds: float


T = TypeVar("T")
W = TypeVar("W", bound=WriteReply)

#: The steps of an operation, and its result.
Operation = Generator[Call[Any] | DurableCall[Any] | AwaitApplied | Pause, Any, T]


class Commit(Struct, Generic[T], frozen=True):
    """A write that Redis has committed. Times are seconds, by the context's clock."""

    reply: T
    sent_at: float
    replied_at: float
    #: replicas that have it, if it asked for any; seconds until they had; and why Redis could not wait for them
    replicas: int = 0
    durable_s: float = 0.0
    refusal: str = ""


def new_id() -> str:
    """The random id of one write: 64 bits, as hexadecimal."""
    return os.urandom(8).hex()


def ping() -> Operation[int]:
    """Make one round trip; returns Redis's time in ms."""
    reply = yield calls.ping()
    now: int = reply.now
    return now


def environments(keyspace: ProjectKeyspace) -> Operation[tuple[str, ...]]:
    """Read the project's registered environments, in alphabetical order."""
    reply = yield calls.environments(keyspace)
    return tuple(sorted(reply.environments))


def live_counts(keyspace: ProjectKeyspace, contexts: Callable[[str], WriteContext]) -> Operation[dict[str, LiveCounts]]:
    """Count the live sessions and views of each of the project's registered environments."""
    names = yield from environments(keyspace)
    counts: dict[str, LiveCounts] = {}
    for start in range(0, len(names), calls.COUNT_BATCH):
        batch = names[start : start + calls.COUNT_BATCH]
        reply = yield calls.count([contexts(name).keyspace for name in batch])
        counts.update(zip(batch, map(LiveCounts, reply.sessions, reply.views), strict=True))
    return counts


def get(keyspace: EnvironmentKeyspace, session_key: str) -> Operation[Session | None]:
    """Read one session; None if it does not exist."""
    reply = yield calls.get(keyspace, session_key)
    if reply.session is None:
        return None
    return _session(keyspace, reply.session)


def commit(context: WriteContext, call: Call[T], terms: Terms) -> Operation[Commit[T]]:
    """Run a write, and wait for its replicas. Meanwhile the views apply it."""
    sent_at = context.clock()
    if not terms.replicas:
        reply: T = yield call
        return Commit(reply, sent_at, context.clock())
    done: Replicated[T] = yield calls.durable(context.keyspace, call, terms.replicas)
    durable_s = context.clock() - done.replied_at
    return Commit(done.reply, sent_at, done.replied_at, done.replicas, durable_s, done.refusal)


def write(context: WriteContext, call: Call[WriteReply], terms: Terms) -> Operation[Session]:
    """Write a session; returns it with its effect."""
    try:
        done = yield from commit(context, call, terms)
    except (InvalidInputError, NotFoundError) as exc:
        raise (yield from suggest(context.keyspace, exc)) from None
    assert done.reply.session is not None, "a script that writes a session answers with it"
    session = _session(context.keyspace, done.reply.session)
    effect = yield from take_effect(context, done, session, terms)
    return replace(session, effect=effect)


def suggest(keyspace: EnvironmentKeyspace, error: SessionStoreError) -> Operation[SessionStoreError]:
    """Add to an error about an unknown id the one that the catalog has in another case, or for this urlId."""
    if error.unknown is None:
        return error
    try:
        reply: CatalogReply = yield calls.read_catalog(keyspace)
    except SessionStoreError:
        return error
    near = None if reply.catalog is None else reply.catalog.nearest_id(error.unknown)
    return error if near is None else type(error)(f"{error} Did you mean {near!r}?")


def delete(context: WriteContext, call: Call[WriteReply], terms: Terms) -> Operation[Deletion]:
    """Remove a session."""
    done = yield from commit(context, call, terms)
    effect = yield from take_effect(context, done, None, terms)
    return Deletion(done.reply.existed, effect)


def touch(context: WriteContext, seen: Mapping[str, int]) -> Operation[int]:
    """Record when sessions were last seen, in batches; returns how many of them exist."""
    items = list(seen.items())
    # This checks all of them before the first is sent.
    batches = [
        calls.touch(context, new_id(), dict(items[start : start + calls.TOUCH_BATCH]))
        for start in range(0, len(items), calls.TOUCH_BATCH)
    ]
    touched = 0
    for call in batches:
        reply = yield call
        context.learn(reply.rev, recounting=False)
        touched += reply.touched
    return touched


def list_sessions(
    keyspace: EnvironmentKeyspace, limit: int, cursor: str | None, prefix: str | None
) -> Operation[SessionPage]:
    """Read one page of the live sessions, newest seen first; it is short if the index names many others."""
    validate_limit(limit)
    if prefix is not None:
        validate_key_prefix(prefix)
    after = None if cursor is None else decode_cursor(cursor, tuple[int, str], "cursor")
    sessions: list[Session] = []
    corrupt: list[str] = []
    # The index may name expired sessions, so a page may take several looks; after the last it is returned short, with a
    # cursor.
    count = limit
    for _ in range(_MAX_LOOKS):
        page: IndexPage = yield calls.page(keyspace, count, after, prefix=prefix or "")
        reply = SessionsReply(0, ())
        if page.members:
            reply = yield calls.read(keyspace, [key for key, _ in page.members])
        states = {state.session_key: state for state in reply.sessions}
        for number, (key, last_seen_at) in enumerate(page.members, 1):
            if key in states:
                sessions.append(_session(keyspace, states[key]))
                if len(sessions) == limit and (number < len(page.members) or page.next is not None):
                    return SessionPage(tuple(sessions), encode_cursor((last_seen_at, key)), tuple(corrupt))
            elif key in reply.corrupt:
                corrupt.append(key)
        if page.next is None:
            return SessionPage(tuple(sessions), None, tuple(corrupt))
        key, last_seen_at = page.next
        after = (last_seen_at, key)
        count = calls.READ_BATCH
    return SessionPage(tuple(sessions), encode_cursor(after), tuple(corrupt))


def views(keyspace: EnvironmentKeyspace) -> Operation[tuple[LiveView, ...]]:
    """List the views that hold a lease, in the order in which the leases expire."""
    return _live((yield calls.views(keyspace)))


def live_views(
    keyspace: EnvironmentKeyspace, project: ProjectKeyspace, contexts: Callable[[str], WriteContext]
) -> Operation[LiveViews]:
    """List the views of one environment, and count those of the project's others."""
    reply: ViewsReply = yield calls.views(keyspace)
    counts = yield from live_counts(project, contexts)
    if counts and keyspace.environment not in counts:
        raise unknown_environment(keyspace, counts)
    elsewhere = {name: count.views for name, count in counts.items() if count.views and name != keyspace.environment}
    return LiveViews(reply.rev, _live(reply), elsewhere)


def _live(reply: ViewsReply) -> tuple[LiveView, ...]:
    found = []
    for view in reply.views:
        info = decode_view_info(view.info)
        found.append(
            LiveView(
                id=view.lease,
                host=info.host,
                pid=info.pid,
                version=info.version,
                applied_revision=view.applied,
                lag=max(0, reply.rev - view.applied),
                lease_left_ms=view.lease_left_ms,
            )
        )
    return tuple(found)


def take_effect(context: WriteContext, done: Commit[W], session: Session | None, terms: Terms) -> Operation[Effect]:
    """Wait until every live lease has applied the write or has expired; then count the reports that are asked for."""
    clock = context.clock
    reply, committed = done.reply, done.replied_at
    context.learn(reply.rev, recounting=reply.countable_in_ms > 0)
    live, pending, expired = reply.live, reply.pending, reply.expired
    # Until then leases may be missing from the count.
    settled = max(committed + _countable_in_s(context, reply), context.server.countable_at)
    longest = committed + context.lease_ms / 1000 * _LONGEST_WAIT_LEASES
    # Replicas may have taken longer than any lease.
    until = max(longest, clock()) + _PATIENCE_S
    look_s = next_look_s = _FIRST_LOOK_S
    since_s = clock() - done.sent_at
    unreachable: StoreUnavailableError | None = None
    while terms.wait and (pending or clock() < settled):
        now = clock()
        if now >= until:
            raise _not_effective(reply, session, _STOPPED if unreachable else _OUTLASTED) from unreachable
        try:
            if not pending:
                # Only time is missing: views that join from now on have the write already.
                yield Pause(max(0.0, min(settled, until) - now))
                continue
            timeout_s = next_look_s
            look_s = next_look_s = min(2 * look_s, _LAST_LOOK_S)
            applied: Applied | None = yield AwaitApplied(context.keyspace, reply.target_rev, timeout_s, since_s)
            # Only the first wait accepts a message that came before it.
            since_s = 0.0
            if applied is not None and applied.epoch == reply.epoch:
                live, pending, expired = applied.live, 0, applied.expired
                continue
            lease_status: LeaseStatusReply = yield calls.lease_status(context, reply.target_rev)
        except StoreUnavailableError as exc:
            unreachable = exc
            continue
        except SessionStoreError as exc:
            raise _not_effective(reply, session, str(exc)) from exc
        unreachable = None
        if _is_lost(reply, lease_status):
            raise _not_effective(reply, session, _LOST)
        live, pending, expired = lease_status.live, lease_status.pending, lease_status.expired
        # The newest answer decides: if an earlier reply was late, its end was too late.
        settled = max(
            context.server.countable_at,
            clock() + _countable_in_s(context, lease_status) if lease_status.countable_in_ms else 0.0,
        )
        if pending:
            # Redis drops a lease one millisecond after its last.
            next_look_s = min(look_s, (lease_status.lease_left_ms + 1) / 1000)
    if done.replicas < terms.replicas:
        raise _not_durable(context.keyspace, done, session, terms.replicas)
    confirmed = live - pending
    if terms.views:
        confirmed = yield from _count_reports(context, reply, session, terms.views, longest)
    effect = Effect(
        revision=reply.target_rev,
        confirmed=confirmed,
        expired=max(0, expired - reply.expired),
        waited=terms.wait,
        commit_s=committed - done.sent_at,
        effective_s=clock() - committed if terms.wait else 0.0,
        replicas=done.replicas,
        durable_s=done.durable_s,
    )
    if confirmed < terms.views:
        raise _too_few_views(context.keyspace, effect, session, terms.views)
    return effect


def _session(keyspace: EnvironmentKeyspace, state: StoredSession) -> Session:
    details = SessionDetails(state.ttl_seconds, state.modified_at, state.modified_by, state.looked_up_at)
    return session_from_state(Session, keyspace, state, state.scenario, state.overrides, details)


def _countable_in_s(context: WriteContext, reply: WriteReply | LeaseStatusReply) -> float:
    """Seconds until leases can be counted: never more than a lease, whatever Redis says."""
    return min(reply.countable_in_ms, context.lease_ms) / 1000


def _count_reports(
    context: WriteContext, reply: WriteReply, session: Session | None, wanted: int, until: float
) -> Operation[int]:
    """Count the live views that have reported the write.

    A lease that was taken after the write counts as having applied it, and its view reports that with its next renewal.
    Wait for such a report, but not for further views.
    """
    look_s = _FIRST_LOOK_S
    while True:
        try:
            found: ViewsReply = yield calls.views(context.keyspace)
        except SessionStoreError as exc:
            why = _STOPPED if isinstance(exc, StoreUnavailableError) else str(exc)
            raise _not_effective(reply, session, why) from exc
        if _is_lost(reply, found):
            raise _not_effective(reply, session, _LOST)
        reported = sum(view.applied >= reply.target_rev for view in found.views)
        if reported >= wanted or len(found.views) < wanted or context.clock() >= until:
            return reported
        yield Pause(look_s)
        look_s = min(2 * look_s, _LAST_LOOK_S)


def _is_lost(reply: WriteReply, later: LeaseStatusReply | ViewsReply) -> bool:
    """Whether Redis may hold another history than that of the write: it was emptied, restarted or replaced since."""
    return later.rev < reply.target_rev or reply.epoch not in ("", later.epoch)


def _too_few_views(
    keyspace: EnvironmentKeyspace, effect: Effect, session: Session | None, wanted: int
) -> TooFewViewsError:
    return TooFewViewsError(
        f"The state is set, as revision {effect.revision} of {keyspace}; but views asked for {wanted} live views to "
        f"confirm it, and {effect.confirmed} did. Is a proxy running, with a view of this project and environment? "
        "sessionstore views lists them.",
        None if session is None else session.revision,
        effect.confirmed,
        effect.expired,
    )


def _not_durable(
    keyspace: EnvironmentKeyspace, done: Commit[W], session: Session | None, wanted: int
) -> NotDurableError:
    found = done.refusal or "INFO replication on the primary shows its replicas"
    return NotDurableError(
        f"The state is set, as revision {done.reply.target_rev} of {keyspace}, but a failover may lose it: "
        f"replicas={wanted} was asked for, and {done.replicas} had it in time; {found}. Sending the call again is "
        "safe, and waits again.",
        None if session is None else session.revision,
        done.replicas,
    )


def _not_effective(reply: WriteReply, session: Session | None, why: str) -> NotEffectiveError:
    return NotEffectiveError(
        f"The write was committed as revision {reply.target_rev}, but perhaps not every view serves it: {why}",
        None if session is None else session.revision,
    )
