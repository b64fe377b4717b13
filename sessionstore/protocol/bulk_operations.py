"""What a store does with all sessions whose keys begin alike, as generators like those in operations.py.

Each session changes by the script that changes one session, so none of these scripts takes longer than those. The index
is read by ZSCAN: a session that is looked up meanwhile moves in the index, and must not be missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec.structs import replace

from ..errors import OutcomeUnknownError, SessionNotFoundError, StoreUnavailableError
from ..session import BulkResult, SessionPatch, validate_key_prefix
from . import calls
from .calls import Call, Terms, WriteContext
from .keyspace import EnvironmentKeyspace
from .operations import Commit, Operation, commit, new_id, take_effect
from .replies import (
    HeadReply,
    LeaseStatusReply,
    ScanReply,
    SessionsReply,
    StoredSession,
    WriteReply,
    unknown_environment,
)

#: Sessions that one operation changes, at most.
MAX_CHANGED = 1000

Mode = Literal["reset", "delete"]


def change_prefix(context: WriteContext, prefix: str, mode: Mode, terms: Terms) -> Operation[BulkResult]:
    """Reset or delete the sessions whose keys begin so, and wait once for the views."""
    validate_key_prefix(prefix)
    started = context.clock()
    keys = yield from _find(context.keyspace, prefix, _is_set if mode == "reset" else _is_any)
    more = len(keys) > MAX_CHANGED
    change = calls.reset if mode == "reset" else calls.delete
    count = 0
    last: Commit[WriteReply] | None = None
    #: the first change that too few replicas have; the others don't wait for them
    short: Commit[WriteReply] | None = None
    for number, key in enumerate(keys[:MAX_CHANGED], 1):
        # The views acknowledge the last change at once, and with it the others.
        final = number == min(len(keys), MAX_CHANGED)
        call: Call[WriteReply] = change(
            context, new_id(), key, terms=terms if final else Terms(wait=False, actor=terms.actor)
        )
        try:
            made = yield from commit(context, call, terms if short is None else replace(terms, replicas=0))
        except SessionNotFoundError:
            continue  # somebody else has deleted it meanwhile
        except StoreUnavailableError as exc:
            if not count and not isinstance(exc, OutcomeUnknownError):
                raise
            done = "reset" if mode == "reset" else "deleted"
            raise OutcomeUnknownError(
                f"Redis failed midway: {count} sessions were {done}, and perhaps one more; "
                "send the call again for the others, which is safe."
            ) from exc
        context.learn(made.reply.rev, recounting=made.reply.countable_in_ms > 0)
        count += made.reply.changed
        if short is None and made.replicas < terms.replicas:
            short = made
        if last is None or made.reply.target_rev >= last.reply.target_rev:
            last = made
    if last is None or not count:
        last = yield from _stand_still(context, terms)
    last = replace(short or last, reply=last.reply, sent_at=started, replied_at=last.replied_at)
    return BulkResult(count, more, (yield from take_effect(context, last, None, terms)))


def _is_set(state: StoredSession) -> bool:
    """Whether a session has anything that a reset clears."""
    properties = SessionPatch.__struct_fields__
    return any(getattr(state, name) not in (None, 0, ()) for name in properties)


def _is_any(_: StoredSession) -> bool:
    return True


def _find(keyspace: EnvironmentKeyspace, prefix: str, wanted: Callable[[StoredSession], bool]) -> Operation[list[str]]:
    """Find the sessions to change; one more than are changed tells that there are more.

    Corrupt ones come last: a deletion removes them, and a reset fails after it has reset the others.
    """
    found: dict[str, None] = {}
    corrupt: dict[str, None] = {}
    cursor = None
    while cursor != "0":
        page: ScanReply = yield calls.scan(keyspace, cursor or "0", prefix=prefix)
        if not page.known:
            raise unknown_environment(keyspace)
        cursor = page.cursor
        for start in range(0, len(page.members), calls.READ_BATCH):
            reply: SessionsReply = yield calls.read(keyspace, page.members[start : start + calls.READ_BATCH])
            found.update((state.session_key, None) for state in reply.sessions if wanted(state))
            corrupt.update(dict.fromkeys(reply.corrupt))
            if len(found) > MAX_CHANGED:
                return list(found)
    return [*found, *corrupt]


def _stand_still(context: WriteContext, terms: Terms) -> Operation[Commit[WriteReply]]:
    """What a write would answer that changed nothing: an earlier call may have made all changes, and not waited."""
    head: HeadReply = yield calls.read_head(context.keyspace)
    made: Commit[LeaseStatusReply] = yield from commit(context, calls.lease_status(context, head.rev), terms)
    status = made.reply
    reply = WriteReply(
        status="ok",
        rev=status.rev,
        target_rev=head.rev,
        live=status.live,
        pending=status.pending,
        expired=status.expired,
        countable_in_ms=status.countable_in_ms,
        epoch=status.epoch,
    )
    return Commit(reply, made.sent_at, made.replied_at, made.replicas, made.durable_s, made.refusal)
