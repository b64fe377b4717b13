"""What a store does for each method, as generators: they yield the steps to take and are sent the results.

The sync and asyncio stores only run them; whatever is decided is decided here. An error of a step is thrown into the
generator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from msgspec.structs import replace

from ..errors import NotEffectiveError, SessionStoreError, StoreUnavailableError
from ..paging import decode_cursor, encode_cursor, validate_limit
from ..session import Deletion, Effect, LiveView, Session, SessionPage, SessionPatch
from . import calls
from .calls import Call, IfMatch, WriteContext
from .keyspace import EnvironmentKeyspace, ProjectKeyspace
from .messages import Applied
from .replies import LeaseStatusReply, WriteReply, decode_view_info, session_from_state

#: Seconds between two looks at the leases while a writer waits, at first and at most: a message says when every view
#: has applied the revision, and the looks are there in case it is lost.
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5

#: Looks at the index for one page of a list: some thousand members that may be gone.
_MAX_LOOKS = 20

#: Leases that a wait lasts at most because of views: each may renew once more, a third of a lease after the write or a
#: twentieth later, without having applied it (scripts/renew.lua).
_LONGEST_WAIT_LEASES = 1 + 1 / 3 + 1 / 20

#: Seconds that a wait may take beyond that before it is given up.
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

    The message may have come already, in the last `sent_s` seconds: since the write was sent.
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

#: The steps of an operation, and what it returns in the end.
Operation = Generator[Call[Any] | AwaitApplied | Pause, Any, T]

#: Seconds, monotonic.
Clock = Callable[[], float]


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


def live_sessions(keyspace: ProjectKeyspace, contexts: Callable[[str], WriteContext]) -> Operation[dict[str, int]]:
    """Count the live sessions of each of the project's registered environments."""
    names = yield from environments(keyspace)
    counts: dict[str, int] = {}
    for start in range(0, len(names), calls.COUNT_BATCH):
        batch = names[start : start + calls.COUNT_BATCH]
        reply = yield calls.count([contexts(name).keyspace for name in batch])
        counts.update(zip(batch, reply.counts, strict=True))
    return counts


def get(keyspace: EnvironmentKeyspace, session_key: str) -> Operation[Session | None]:
    """Read one session; None if it does not exist."""
    reply = yield calls.get(keyspace, session_key)
    if reply.session is None:
        return None
    return session_from_state(reply.session, keyspace.project, keyspace.environment)


def put(
    context: WriteContext,
    clock: Clock,
    session_key: str,
    patch: SessionPatch,
    *,
    if_match: IfMatch | None = None,
    if_none_match: Literal["*"] | None = None,
    wait: bool = True,
) -> Operation[Session]:
    """Set a session's state."""
    call = calls.put(context, new_id(), session_key, patch, if_match=if_match, if_none_match=if_none_match, wait=wait)
    return (yield from _write_session(context, clock, call, wait))


def activate(
    context: WriteContext, clock: Clock, session_key: str, override: str, *, wait: bool = True
) -> Operation[Session]:
    """Switch one override on."""
    call = calls.activate(context, new_id(), session_key, override, wait=wait)
    return (yield from _write_session(context, clock, call, wait))


def deactivate(
    context: WriteContext, clock: Clock, session_key: str, override: str, *, wait: bool = True
) -> Operation[Session]:
    """Switch one override off."""
    call = calls.deactivate(context, new_id(), session_key, override, wait=wait)
    return (yield from _write_session(context, clock, call, wait))


def reset(
    context: WriteContext, clock: Clock, session_key: str, *, if_match: IfMatch | None = None, wait: bool = True
) -> Operation[Session]:
    """Clear everything that a PUT can set."""
    call = calls.reset(context, new_id(), session_key, if_match=if_match, wait=wait)
    return (yield from _write_session(context, clock, call, wait))


def delete(
    context: WriteContext, clock: Clock, session_key: str, *, if_match: IfMatch | None = None, wait: bool = True
) -> Operation[Deletion]:
    """Remove a session."""
    started = clock()
    reply = yield calls.delete(context, new_id(), session_key, if_match=if_match, wait=wait)
    effect = yield from take_effect(context, clock, started, reply, None, wait)
    return Deletion(reply.existed, effect)


def touch(context: WriteContext, seen: Mapping[str, int]) -> Operation[int]:
    """Note when sessions were last seen, in batches; returns how many of them there were."""
    items = list(seen.items())
    # All are built, and so checked, before the first is sent.
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


def list_sessions(keyspace: EnvironmentKeyspace, limit: int, cursor: str | None) -> Operation[SessionPage]:
    """Read one page of the live sessions, newest seen first; it may be short where many others are gone."""
    validate_limit(limit)
    after = None if cursor is None else decode_cursor(cursor, tuple[int, str], "cursor")
    sessions: list[Session] = []
    # One member more than is looked at tells whether there is a next page. The index may name sessions that are gone,
    # so a page may take more than one look; past a number of them it is returned short, with where to go on.
    count = limit
    for _ in range(_MAX_LOOKS):
        members = (yield calls.page(keyspace, count + 1, after)).members
        looked_at = members[:count]
        states = {}
        if looked_at:
            reply = yield calls.read(keyspace, [key for key, _ in looked_at])
            states = {state.session_key: state for state in reply.sessions}
        for number, (key, last_seen_at) in enumerate(looked_at, 1):
            after = (last_seen_at, key)
            if key in states:
                sessions.append(session_from_state(states[key], keyspace.project, keyspace.environment))
                if len(sessions) == limit and number < len(members):
                    return SessionPage(tuple(sessions), encode_cursor(after))
        if len(members) <= count:
            return SessionPage(tuple(sessions), None)
        count = calls.READ_BATCH
    assert after is not None, "there was a member, since there are more"
    return SessionPage(tuple(sessions), encode_cursor(after))


def views(keyspace: EnvironmentKeyspace) -> Operation[tuple[LiveView, ...]]:
    """List the views that hold a lease, the one that runs out first first."""
    reply = yield calls.views(keyspace)
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


def _write_session(context: WriteContext, clock: Clock, call: Call[WriteReply], wait: bool) -> Operation[Session]:
    started = clock()
    reply: WriteReply = yield call
    assert reply.session is not None, "a script that writes a session answers with it"
    session = session_from_state(reply.session, context.keyspace.project, context.keyspace.environment)
    effect = yield from take_effect(context, clock, started, reply, session, wait)
    return replace(session, effect=effect)


def take_effect(
    context: WriteContext, clock: Clock, started: float, reply: WriteReply, session: Session | None, wait: bool
) -> Operation[Effect]:
    """Wait until every live lease has applied the write, or has run out."""
    committed = clock()
    context.learn(reply.rev, recounting=reply.countable_in_ms > 0)
    live, pending, expired = reply.live, reply.pending, reply.expired
    # Until then leases may be missing from the count.
    settled = max(committed + reply.countable_in_ms / 1000, context.server.countable_at)
    longest = committed + context.lease_ms / 1000 * _LONGEST_WAIT_LEASES
    look_s = next_look_s = _FIRST_LOOK_S
    since_s = committed - started
    unreachable: StoreUnavailableError | None = None
    while wait and (pending or clock() < settled):
        now = clock()
        if now > max(settled, longest) + _PATIENCE_S:
            raise _not_effective(reply, session, _STOPPED if unreachable else _OUTLASTED) from unreachable
        try:
            if not pending:
                # Only time is missing: whoever joins from now on has the write already.
                yield Pause(max(0.0, settled - now))
                continue
            timeout_s = next_look_s
            look_s = next_look_s = min(2 * look_s, _LAST_LOOK_S)
            applied: Applied | None = yield AwaitApplied(context.keyspace, reply.target_rev, timeout_s, since_s)
            # The driver may have kept a message that came before this wait; it is asked for once.
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
        # The newest answer decides; the end of an earlier one may have been put off by a late reply.
        settled = max(
            context.server.countable_at,
            clock() + lease_status.countable_in_ms / 1000 if lease_status.countable_in_ms else 0.0,
        )
        if pending:
            # Redis drops a lease in the millisecond after its last.
            next_look_s = min(look_s, (lease_status.lease_left_ms + 1) / 1000)
    return Effect(
        revision=reply.target_rev,
        confirmed=live - pending,
        expired=max(0, expired - reply.expired),
        waited=wait,
        commit_s=committed - started,
        effective_s=clock() - committed if wait else 0.0,
    )


def _is_lost(reply: WriteReply, lease_status: LeaseStatusReply) -> bool:
    """Whether Redis may hold another history than that of the write: it was emptied, restarted or replaced since."""
    return lease_status.rev < reply.target_rev or reply.epoch not in ("", lease_status.epoch)


def _not_effective(reply: WriteReply, session: Session | None, why: str) -> NotEffectiveError:
    return NotEffectiveError(
        f"The write was committed as revision {reply.target_rev}, but whether every view serves it is not known: {why}",
        None if session is None else session.revision,
    )
