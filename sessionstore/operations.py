"""What a store does for each method, as generators: they yield the steps to take and are sent the results.

The sync and asyncio stores only run them; whatever is decided is decided here. An error of a step is thrown into the
generator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from . import commands
from .codec import WriteReply, decode_cursor, encode_cursor, session_from_state
from .commands import Call, IfMatch, WriteContext
from .errors import InvalidQueryError, NotEffectiveError, StoreUnavailableError
from .keys import EnvironmentKeys, ProjectKeys
from .messages import Applied
from .session import Deletion, Effect, Session, SessionPage

__all__ = [
    "AwaitApplied",
    "Operation",
    "activate",
    "deactivate",
    "delete",
    "environments",
    "get",
    "list_sessions",
    "ping",
    "put",
    "reset",
    "touch",
]

#: Seconds between two looks at the leases while a writer waits, at first and at most: a message says when every view
#: has applied the revision, and the looks are there in case it is lost.
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5

#: Seconds that a wait may take beyond a lease and a third before it is given up.
_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class AwaitApplied:
    """Wait until an `Applied` message names `rev` or a later one, or for `timeout_s`; the result is it, or None."""

    keys: EnvironmentKeys
    rev: int
    timeout_s: float


T = TypeVar("T")

#: The steps of an operation, and what it returns in the end.
Operation = Generator[Call[Any] | AwaitApplied, Any, T]

#: Seconds, monotonic.
Clock = Callable[[], float]


def new_id() -> str:
    """The random id of one write: 64 bits, as hexadecimal."""
    return os.urandom(8).hex()


def ping() -> Operation[int]:
    """Make one round trip; returns Redis's time in ms."""
    reply = yield commands.ping()
    now: int = reply.now
    return now


def environments(keys: ProjectKeys) -> Operation[tuple[str, ...]]:
    """Read the project's registered environments, in alphabetical order."""
    reply = yield commands.environments(keys)
    return tuple(sorted(reply.environments))


def get(keys: EnvironmentKeys, session_key: str) -> Operation[Session | None]:
    """Read one session; None where there is none."""
    reply = yield commands.get(keys, session_key)
    if reply.session is None:
        return None
    return session_from_state(reply.session, keys.project, keys.environment)


def put(
    context: WriteContext,
    clock: Clock,
    session_key: str,
    *,
    label: str | None | UnsetType = UNSET,
    scenario: str | None | UnsetType = UNSET,
    overrides: Iterable[str] | UnsetType = UNSET,
    global_delay_ms: int | None | UnsetType = UNSET,
    global_delay_max_ms: int | None | UnsetType = UNSET,
    if_match: IfMatch | None = None,
    if_none_match: Literal["*"] | None = None,
    wait: bool = True,
) -> Operation[Session]:
    """Set a session's state."""
    call = commands.put(
        context,
        new_id(),
        session_key,
        label=label,
        scenario=scenario,
        overrides=overrides,
        global_delay_ms=global_delay_ms,
        global_delay_max_ms=global_delay_max_ms,
        if_match=if_match,
        if_none_match=if_none_match,
        wait=wait,
    )
    return (yield from _write_session(context, clock, call, wait))


def activate(
    context: WriteContext, clock: Clock, session_key: str, override: str, *, wait: bool = True
) -> Operation[Session]:
    """Switch one override on."""
    call = commands.activate(context, new_id(), session_key, override, wait=wait)
    return (yield from _write_session(context, clock, call, wait))


def deactivate(
    context: WriteContext, clock: Clock, session_key: str, override: str, *, wait: bool = True
) -> Operation[Session]:
    """Switch one override off."""
    call = commands.deactivate(context, new_id(), session_key, override, wait=wait)
    return (yield from _write_session(context, clock, call, wait))


def reset(
    context: WriteContext, clock: Clock, session_key: str, *, if_match: IfMatch | None = None, wait: bool = True
) -> Operation[Session]:
    """Clear everything that a PUT can set."""
    call = commands.reset(context, new_id(), session_key, if_match=if_match, wait=wait)
    return (yield from _write_session(context, clock, call, wait))


def delete(
    context: WriteContext, clock: Clock, session_key: str, *, if_match: IfMatch | None = None, wait: bool = True
) -> Operation[Deletion]:
    """Remove a session."""
    started = clock()
    reply = yield commands.delete(context, new_id(), session_key, if_match=if_match, wait=wait)
    effect = yield from _take_effect(context, clock, started, reply, None, wait)
    return Deletion(reply.existed, effect)


def touch(context: WriteContext, seen: Mapping[str, int]) -> Operation[int]:
    """Note when sessions were last seen, in batches; returns how many of them there were."""
    items = list(seen.items())
    # All are built, and so checked, before the first is sent.
    calls = [
        commands.touch(context, new_id(), dict(items[start : start + commands.TOUCH_BATCH]))
        for start in range(0, len(items), commands.TOUCH_BATCH)
    ]
    touched = 0
    for call in calls:
        reply = yield call
        context.learn(reply.rev, settling=False)
        touched += reply.touched
    return touched


def list_sessions(keys: EnvironmentKeys, limit: int, cursor: str | None) -> Operation[SessionPage]:
    """Read one page of the live sessions, newest seen first."""
    if type(limit) is not int or not 1 <= limit <= commands.MAX_PAGE:
        raise InvalidQueryError(f"limit must be a whole number from 1 to {commands.MAX_PAGE}.")
    after = None if cursor is None else decode_cursor(cursor)
    sessions: list[Session] = []
    while True:
        # The index may name sessions that are gone, so a page may take more than one look. One member more than is
        # asked for tells whether there is a next page.
        wanted = limit - len(sessions)
        members = (yield commands.page(keys, wanted + 1, after)).members
        states = {}
        if members:
            reply = yield commands.read(keys, [key for key, _ in members])
            states = {state.session_key: state for state in reply.sessions}
        for key, last_seen_at in members[:wanted]:
            after = (last_seen_at, key)
            if key in states:
                sessions.append(session_from_state(states[key], keys.project, keys.environment))
        if len(members) <= wanted:
            return SessionPage(tuple(sessions), None)
        if len(sessions) == limit and after is not None:
            return SessionPage(tuple(sessions), encode_cursor(*after))


def _write_session(context: WriteContext, clock: Clock, call: Call[WriteReply], wait: bool) -> Operation[Session]:
    started = clock()
    reply: WriteReply = yield call
    assert reply.session is not None, "a script that writes a session answers with it"
    session = session_from_state(reply.session, context.keys.project, context.keys.environment)
    effect = yield from _take_effect(context, clock, started, reply, session, wait)
    return replace(session, effect=effect)


def _take_effect(
    context: WriteContext, clock: Clock, started: float, reply: WriteReply, session: Session | None, wait: bool
) -> Operation[Effect]:
    """Wait until every live lease has applied the write, or has run out."""
    committed = clock()
    context.learn(reply.rev, settling=reply.settle > 0)
    live, pending, expired = reply.live, reply.pending, 0
    settled = committed + reply.settle / 1000
    give_up = max(settled, committed + context.lease_ms * 4 / 3000) + _PATIENCE_S
    look_s = _FIRST_LOOK_S
    unreachable: StoreUnavailableError | None = None
    while wait and (pending or clock() < settled):
        now = clock()
        if now > give_up:
            raise NotEffectiveError(
                f"The write was committed as revision {reply.wait_rev}, but Redis then stopped answering, so whether "
                "every view serves it is not known; repeat the call, which is safe.",
                session,
            ) from unreachable
        applied: Applied | None = yield AwaitApplied(
            context.keys, reply.wait_rev, min(look_s, settled - now) if not pending else look_s
        )
        if applied is not None and clock() >= settled:
            live, pending, expired = applied.live, 0, applied.expired - reply.expired
            break
        look_s = min(2 * look_s, _LAST_LOOK_S)
        try:
            standing = yield commands.standing(context.keys, reply.wait_rev)
        except StoreUnavailableError as exc:
            unreachable = exc
            continue
        if standing.rev < reply.wait_rev:
            raise NotEffectiveError(
                f"The write was committed as revision {reply.wait_rev}, but Redis has lost it since (it is at revision "
                f"{standing.rev}); repeat the call.",
                session,
            )
        live, pending, expired = standing.live, standing.pending, standing.expired - reply.expired
        if pending:
            look_s = min(look_s, standing.left / 1000 + 0.001)
        settled = max(settled, clock() + standing.settle / 1000) if standing.settle else settled
    return Effect(
        revision=reply.wait_rev,
        confirmed=live - pending,
        expired=max(0, expired),
        waited=wait,
        commit_s=committed - started,
        effective_s=clock() - committed if wait else 0.0,
    )
