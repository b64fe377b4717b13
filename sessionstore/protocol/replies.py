"""Replies of the scripts: JSON in, values of this library or its errors out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ..catalog.model import Catalog
from ..errors import (
    CorruptDataError,
    CorruptSessionError,
    EnvironmentNotFoundError,
    InvalidOverrideError,
    InvalidScenarioError,
    OverrideNotFoundError,
    PreconditionFailedError,
    QuotaExceededError,
    SessionNotFoundError,
    SessionStoreError,
    StoreUnavailableError,
)
from ..session import MAX_OVERRIDES, Session, SessionDetails
from .keyspace import EnvironmentKeyspace
from .messages import SessionState

#: A bulk string of redis-py: bytes, or text if the client decodes responses.
Payload = bytes | str

T = TypeVar("T", bound=Struct)
S = TypeVar("S", bound=Session)


class Reply(Struct, frozen=True, gc=False, kw_only=True):
    """The fields that begin every script's answer."""

    status: str
    #: the subject of a status other than ok
    detail: str = ""


class StoredSession(SessionState, rename="camel", frozen=True, gc=False):
    """A session's state with what only replies carry; see `SessionDetails`."""

    ttl_seconds: int | None = None
    modified_at: int | None = None
    modified_by: str | None = None
    looked_up_at: int | None = None


class SessionReply(Reply, frozen=True, gc=False, kw_only=True):
    """Answer of get."""

    now: int = 0
    session: StoredSession | None = None


class WriteReply(SessionReply, frozen=True, gc=False, kw_only=True):
    """Answer of each script that writes a session (scripts/lib/reply.lua)."""

    #: the environment's revision
    rev: int = 0
    #: the revision that the caller has to wait for
    target_rev: int = msgspec.field(name="targetRev", default=0)
    #: live leases, those of them that have not applied `target_rev`, and all leases that ever expired
    live: int = 0
    pending: int = 0
    expired: int = 0
    #: ms during which live leases may be missing from the count
    countable_in_ms: int = msgspec.field(name="countableInMs", default=0)
    #: the leases' epoch, see LeaseReply; empty before the first lease
    epoch: str = ""
    changed: bool = False
    existed: bool = False


class CatalogApplied(WriteReply, frozen=True, kw_only=True):
    """Answer of catalog_apply; `existed` says that the environment had a catalog."""

    #: the catalog before the change; None if nothing changed
    previous: Catalog | None = None
    #: sessions that lost a scenario or an override
    sessions: int = 0
    #: with the status need_sessions: session keys of the index that the call did not name, and whether more exist
    missing: tuple[str, ...] = ()
    more: bool = False


class UsageReply(Reply, frozen=True, gc=False, kw_only=True):
    """Answer of usage_begin."""

    id: str
    #: whether all sessions of the project are counted
    complete: bool


class FoundReply(Struct, frozen=True):
    """Answer of usage_find."""

    cursor: str
    environments: tuple[str, ...]


class TouchReply(Reply, frozen=True, gc=False, kw_only=True):
    """Answer of touch."""

    now: int = 0
    rev: int = 0
    touched: int = 0


class IndexPage(Reply, frozen=True, kw_only=True):
    """Answer of page: session keys with their lastSeenAt, newest first."""

    members: tuple[tuple[str, int], ...] = ()
    #: the last member that was looked at; None at the end of the index
    next: tuple[str, int] | None = None


class ScanReply(Struct, frozen=True):
    """Answer of scan."""

    cursor: str
    members: tuple[str, ...]
    #: whether the environment is registered, or its project has registered none
    known: bool


class SessionsReply(Struct, frozen=True):
    """Answer of read."""

    now: int
    sessions: tuple[StoredSession, ...]
    #: session keys of corrupt ones
    corrupt: tuple[str, ...] = ()


class SnapshotReply(Struct, frozen=True):
    """Answer of snapshot: the revision it was read at, session keys that were found, and sessions that were read."""

    now: int
    rev: int
    id: str
    cursor: str
    members: tuple[str, ...]
    sessions: tuple[SessionState, ...]
    #: session keys of corrupt ones
    corrupt: tuple[str, ...] = ()


class PingReply(Struct, frozen=True):
    """Answer of ping."""

    now: int


class HeadReply(Struct, frozen=True):
    """Answer of head."""

    now: int
    rev: int
    id: str


class CatalogReply(Struct, frozen=True):
    """Answer of catalog_read."""

    now: int
    #: the project's registered environments, in no order
    environments: tuple[str, ...]
    #: the revision that last changed or removed the catalog; 0 if the environment never had one
    rev: int
    catalog: Catalog | None


class CountsReply(Struct, frozen=True):
    """Answer of count: the live sessions and views of each environment, in the order of the call."""

    now: int
    sessions: tuple[int, ...]
    views: tuple[int, ...]


class EnvironmentsReply(Struct, frozen=True):
    """Answer of environments: the registered ones, in no order."""

    now: int
    environments: tuple[str, ...]


class LeaseStatusReply(Struct, frozen=True, gc=False):
    """Answer of lease_status: the leases that have not applied the revision that a writer waits for."""

    now: int
    rev: int
    live: int
    pending: int
    expired: int
    #: ms until the last pending lease expires
    lease_left_ms: int = msgspec.field(name="leaseLeftMs")
    countable_in_ms: int = msgspec.field(name="countableInMs")
    epoch: str


class AckReply(Reply, frozen=True, gc=False, kw_only=True):
    """Answer of ack: the status is ok, expired or forked, as in `LeaseReply`."""


class LeaseReply(Reply, frozen=True, gc=False, kw_only=True):
    """Answer of join, renew and leave: the head, and how long the lease lasts.

    The status is ok, same (ok, and the head is the view's position), expired (the lease has expired), refused (the view
    lags behind the head of its last answer) or forked (the view's position is not on the head's chain).
    """

    now: int
    #: the head and the epoch are left out with the status same
    rev: int = 0
    id: str = ""
    #: changes when Redis is emptied, restarted or replaced
    epoch: str = ""
    #: from `now` on
    lease_ms: int = msgspec.field(name="leaseMs")


class ViewReply(Struct, frozen=True, gc=False):
    """One lease in the answer of views."""

    lease: str
    info: str
    applied: int
    lease_left_ms: int = msgspec.field(name="leaseLeftMs")


class ViewsReply(Struct, frozen=True):
    """Answer of views."""

    now: int
    rev: int
    epoch: str
    views: tuple[ViewReply, ...]


class ViewInfo(Struct, frozen=True, gc=False):
    """A view's description of itself when it takes a lease."""

    host: str = ""
    pid: int = 0
    version: str = ""


def decoder(reply: type[T]) -> Callable[[Payload], T]:
    """The function that decodes one script's answer, strictly. It is made once."""
    return _decoder(reply)


@cache
def _decoder(reply: type[Any]) -> Callable[[Payload], Any]:
    decode = msgspec.json.Decoder(reply).decode

    def decode_reply(payload: Payload) -> Any:
        try:
            return decode(payload)
        except (msgspec.DecodeError, UnicodeError, TypeError, RecursionError) as exc:
            raise CorruptDataError(f"Redis answered with an invalid {reply.__name__}: {exc}.") from exc

    return decode_reply


class Uncounted(StoreUnavailableError):  # noqa: N818  a state of the project rather than a fault
    """A write with a quota needs a count of the project's sessions; nothing was changed."""


def quota_exceeded(keyspace: EnvironmentKeyspace, detail: str) -> QuotaExceededError:
    """The error for a write over a quota; `detail` is the quota's name and its value."""
    quota, _, limit = detail.partition(" ")
    project = f"Project {keyspace.project!r}"
    reached = {
        "sessions": f"Environment {keyspace} has reached its quota of {limit} sessions. Delete some sessions",
        "bytes": f"{project} would exceed its quota of {limit} bytes of sessions. Delete some sessions",
        "environments": f"{project} has reached its quota of {limit} environments without a catalog. Use one of them, "
        "or register the environment with a catalog",
    }
    return QuotaExceededError(f"{reached[quota]}, or ask the operator for more. Nothing was changed.")


def unknown_environment(keyspace: EnvironmentKeyspace, registered: Iterable[str] = ()) -> EnvironmentNotFoundError:
    """The error for an unregistered environment of a project that has registered others."""
    project, environment = keyspace.project, keyspace.environment
    names = ", ".join(sorted(registered))
    advice = f"it has registered {names}" if names else "name one that its catalog registers"
    return EnvironmentNotFoundError(f"Project {project!r} has no environment {environment!r}; {advice}.")


def _unknown(error: SessionStoreError, name: str) -> SessionStoreError:
    error.unknown = name
    return error


def corrupt_session(keyspace: EnvironmentKeyspace, session_key: str) -> CorruptSessionError:
    """The error for a session whose record is corrupt."""
    return CorruptSessionError(
        f"The record of the session {session_key!r} on {keyspace} is corrupt in Redis; nothing was changed. Delete the "
        "session (over HTTP with mode=delete) without a precondition, then set it again.",
        session_key,
    )


def failure(reply: Reply, keyspace: EnvironmentKeyspace, session_key: str, *, declarative: bool) -> SessionStoreError:
    """The error for a status other than ok.

    If the catalog lacks an override, that is invalid input in a PUT (`declarative`), and not found in a call that names
    the override.
    """
    detail = reply.detail
    match reply.status:
        case "quota_exceeded":
            return quota_exceeded(keyspace, detail)
        case "uncounted":
            return Uncounted(f"The sessions of project {keyspace.project!r} are not counted; try again later.")
        case "not_found":
            return SessionNotFoundError(f"There is no session {session_key!r} on {keyspace}; PUT creates it.")
        case "unknown_environment":
            return unknown_environment(keyspace)
        case "precondition_failed":
            state = f"is at revision {detail}" if detail else "does not exist"
            return PreconditionFailedError(
                f"The session {session_key!r} {state}, which the precondition rules out; read it and try again."
            )
        case "unknown_override":
            error = InvalidOverrideError if declarative else OverrideNotFoundError
            return _unknown(
                error(f"There is no published mock {detail!r} on {keyspace}; name one of its catalog."), detail
            )
        case "local_override":
            return InvalidOverrideError(
                f"The mock {detail!r} belongs to a scenario and can't be toggled by itself; set that scenario."
            )
        case "unknown_scenario":
            sentence = f"There is no scenario {detail!r} on {keyspace}; name one of its catalog."
            return _unknown(InvalidScenarioError(sentence), detail)
        case "corrupt_session":
            return corrupt_session(keyspace, session_key)
        case "too_many_overrides":
            return InvalidOverrideError(
                f"The session {session_key!r} has {MAX_OVERRIDES} overrides, the most allowed; switch one off."
            )
    return CorruptDataError(f"A script answered the status {reply.status!r}, which this version does not know.")


def session_from_state(
    kind: type[S],
    keyspace: EnvironmentKeyspace,
    state: SessionState,
    scenario: str | None,
    overrides: tuple[str, ...],
    details: SessionDetails | None = None,
) -> S:
    """Make a session of its state in a reply or message; `scenario` and `overrides` are equal to the state's."""
    return kind(
        project=keyspace.project,
        environment=keyspace.environment,
        session_key=state.session_key,
        label=state.label,
        scenario=scenario,
        overrides=overrides,
        global_delay_ms=state.global_delay_ms,
        global_delay_max_ms=state.global_delay_max_ms,
        last_seen_at=state.last_seen_at,
        revision=state.rev,
        created_at=state.created_at,
        expires_at=state.expires_at,
        details=details,
    )


_encode_json = msgspec.json.Encoder().encode


def encode_overrides(ids: tuple[str, ...]) -> str:
    """Encode override ids for the hash: a JSON array without spaces, which the scripts compare as text."""
    return _encode_json(ids).decode()


def encode_view_info(info: ViewInfo) -> str:
    """Encode a view's description for the views hash."""
    return _encode_json(info).decode()


def decode_view_info(text: str) -> ViewInfo:
    """The inverse of `encode_view_info`; invalid text gives an empty `ViewInfo`."""
    try:
        return msgspec.json.decode(text, type=ViewInfo)
    except (msgspec.DecodeError, RecursionError):
        return ViewInfo()
