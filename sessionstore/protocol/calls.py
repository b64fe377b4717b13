"""Each run of a script is one `Call`: the script, its keys and arguments, and the decoder of its answer.

All functions are pure. They validate their input first, so every `Call` may be sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct

from ..catalog.model import Catalog
from ..errors import InvalidFieldError, InvalidQueryError
from ..session import MAX_OVERRIDES, SessionPatch, validate_override, validate_scenario, validate_session_key
from . import replies
from .keyspace import EnvironmentKeyspace, ProjectKeyspace
from .replies import Payload, Reply, decoder, encode_overrides, failure
from .scripts import Script, load_script
from .server_identity import ServerIdentity

#: Sessions that one script reads: some 10 µs each, during which Redis serves no other client.
READ_BATCH = 100
#: Members of the index that one script looks at: only names, so more than one reads.
LOOK_BATCH = 1000
#: Sessions that one step of a snapshot reads: two steps may be in flight, so Redis may run two in a row.
SNAPSHOT_BATCH = 50
#: Members of the index that one step of a snapshot finds, about: enough for two steps.
FIND_BATCH = 100
#: Environments whose sessions and views one script counts.
COUNT_BATCH = 100
#: Sessions that one script touches.
TOUCH_BATCH = 200

#: Views whose reports a write may ask for.
MAX_VIEWS = 1000
#: Replicas that a write may wait for.
MAX_REPLICAS = 10

#: A precondition: a revision, several of which one must match, or ``"*"`` for any existing session.
IfMatch = int | Sequence[int] | Literal["*"]

T = TypeVar("T")
R = TypeVar("R", bound=Reply)


class Call(Struct, Generic[T], frozen=True):
    """One run of a script."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[str | int, ...]
    decode: Callable[[Any], T]
    #: a write whose answer is lost may have been applied
    writes: bool = False


@dataclass(frozen=True, slots=True)
class DurableCall(Generic[T]):
    """A call, then a wait on its connection until `replicas` replicas have what it wrote, or found written."""

    call: Call[T]
    #: a write that is always replicated
    fence: Call[replies.Reply]
    replicas: int


@dataclass(frozen=True, slots=True)
class Replicated(Generic[T]):
    """The answer to a `DurableCall`."""

    reply: T
    #: when the reply came: seconds, monotonic
    replied_at: float
    #: how many replicas have it
    replicas: int
    #: why Redis could not wait, for people; empty if it did
    refusal: str = ""


@dataclass(frozen=True)
class Quotas:
    """What a write may make exist, at most; None for any number."""

    #: sessions of one environment
    max_sessions: int | None = None
    #: bytes of one project's sessions, as scripts/lib/usage.lua counts them
    max_project_bytes: int | None = None
    #: environments of one project that no catalog registers
    max_environments: int | None = None

    @cached_property
    def arguments(self) -> tuple[str | int, ...]:
        """The quotas for scripts/lib/write.lua."""
        counted = (self.max_sessions, self.max_project_bytes)
        text = ",".join("" if quota is None else str(quota) for quota in counted)
        return "" if text == "," else text, self.max_environments or ""


@dataclass(slots=True)
class WriteContext:
    """The common arguments of all writes to one environment."""

    keyspace: EnvironmentKeyspace
    #: how long a session lives after it was last seen
    ttl_ms: int
    #: how long a view's lease lasts
    lease_ms: int
    #: seconds, monotonic
    clock: Callable[[], float]
    quotas: Quotas = field(default_factory=Quotas)
    #: the highest revision seen of this environment: a lower one proves that Redis lost data
    known_rev: int = 0
    #: what the store knows of the server
    server: ServerIdentity = field(default_factory=ServerIdentity)

    def learn(self, rev: int, *, recounting: bool) -> None:
        """Remember the revision of an answer; while leases are being recounted, even if it is lower."""
        self.known_rev = rev if recounting else max(self.known_rev, rev)


#: What `replicas` must be.
REPLICAS_RULE = f"must be a whole number from 0 to {MAX_REPLICAS}"


def is_number_of_replicas(value: object) -> bool:
    """Whether a write may wait for so many replicas."""
    return type(value) is int and 0 <= value <= MAX_REPLICAS


class Terms(Struct, frozen=True):
    """What a caller asks of a write besides what it sets.

    Attributes
    ----------
    wait : bool
        Return when every live view serves it; False: when Redis has committed it.
    views : int
        Live views that must have reported it, 0 to 1,000.
    actor : str
        Who writes, for people; empty if unknown.
    replicas : int
        Replicas that must have it, 0 to 10.

    Raises
    ------
    InvalidQueryError
    """

    wait: bool = True
    views: int = 0
    actor: str = ""
    replicas: int = 0

    def __post_init__(self) -> None:
        if type(self.views) is not int or not 0 <= self.views <= MAX_VIEWS:
            raise InvalidQueryError(f"views must be a whole number from 0 to {MAX_VIEWS}.")
        if self.views and not self.wait:
            raise InvalidQueryError("views can't be counted by a write that does not wait; leave one of the two out.")
        if not is_number_of_replicas(self.replicas):
            raise InvalidQueryError(f"replicas {REPLICAS_RULE}.")


DEFAULT_TERMS = Terms()

_encode_json = msgspec.json.Encoder().encode


def _checked(
    decode: Callable[[Payload], R], keyspace: EnvironmentKeyspace, session_key: str, declarative: bool, payload: Payload
) -> R:
    reply = decode(payload)
    if reply.status != "ok":
        raise failure(reply, keyspace, session_key, declarative=declarative)
    return reply


def ping() -> Call[replies.PingReply]:
    """Ask whether scripts run."""
    return Call(load_script("ping"), (), (), decoder(replies.PingReply))


def get(keyspace: EnvironmentKeyspace, session_key: str) -> Call[replies.SessionReply]:
    """Read one session."""
    session_key = validate_session_key(session_key)
    return Call(
        load_script("get"),
        (keyspace.session(session_key), keyspace.environments),
        (keyspace.environment, session_key),
        partial(_checked, decoder(replies.SessionReply), keyspace, session_key, False),
    )


def put(
    context: WriteContext,
    op_id: str,
    session_key: str,
    patch: SessionPatch,
    *,
    replace: bool = False,
    if_match: IfMatch | None = None,
    if_none_match: Literal["*"] | None = None,
    terms: Terms = DEFAULT_TERMS,
) -> Call[replies.WriteReply]:
    """Set the properties that the patch has, clear those that are None, and leave the others unchanged.

    With `replace`, clear the others too.
    """
    if if_none_match not in (None, "*"):
        raise InvalidQueryError('if_none_match must be None or "*".')
    if patch.ttl_seconds and patch.ttl_seconds * 1000 > context.ttl_ms:
        raise InvalidFieldError(f"ttlSeconds must be at most {context.ttl_ms // 1000} seconds, this store's TTL.")
    keyspace = context.keyspace
    return _write(
        "put",
        context,
        op_id,
        session_key,
        terms,
        keys=keyspace.catalog_keys,
        args=(_if_match_argument(if_match), if_none_match or "", *_patch_arguments(patch, replace)),
        declarative=True,
        creates=True,
    )


#: Of each property: its attribute, and the arguments that set and clear it.
_PROPERTIES = [
    (attribute, f"+{name}", f"-{name}")
    for attribute, name in zip(SessionPatch.__struct_fields__, SessionPatch.__struct_encode_fields__, strict=True)
]


def _patch_arguments(patch: SessionPatch, replace: bool) -> list[str | int]:
    arguments: list[str | int] = []
    for attribute, sets, clears in _PROPERTIES:
        value = getattr(patch, attribute)
        if value is UNSET:
            if not replace:
                continue
            value = () if attribute == "overrides" else None
        if value is None:
            arguments += (clears, "")
            continue
        if attribute == "scenario":
            validate_scenario(value)
        arguments += (sets, encode_overrides(value) if type(value) is tuple else value)
    return arguments


def activate(
    context: WriteContext, op_id: str, session_key: str, override: str, *, terms: Terms = DEFAULT_TERMS
) -> Call[replies.WriteReply]:
    """Switch one override on; create the session if it is missing."""
    return _toggle("activate", context, op_id, session_key, override, terms, (MAX_OVERRIDES,))


def deactivate(
    context: WriteContext, op_id: str, session_key: str, override: str, *, terms: Terms = DEFAULT_TERMS
) -> Call[replies.WriteReply]:
    """Switch one override off."""
    return _toggle("deactivate", context, op_id, session_key, override, terms, ())


def reset(
    context: WriteContext,
    op_id: str,
    session_key: str,
    *,
    if_match: IfMatch | None = None,
    terms: Terms = DEFAULT_TERMS,
) -> Call[replies.WriteReply]:
    """Clear everything that a PUT can set."""
    return _write("reset", context, op_id, session_key, terms, args=(_if_match_argument(if_match),))


def delete(
    context: WriteContext,
    op_id: str,
    session_key: str,
    *,
    if_match: IfMatch | None = None,
    terms: Terms = DEFAULT_TERMS,
) -> Call[replies.WriteReply]:
    """Remove a session."""
    return _write("delete", context, op_id, session_key, terms, args=(_if_match_argument(if_match),))


def touch(context: WriteContext, op_id: str, seen: Mapping[str, int]) -> Call[replies.TouchReply]:
    """Record when sessions were last seen: session key → ms since 1970. At most `TOUCH_BATCH`."""
    if len(seen) > TOUCH_BATCH:
        raise InvalidQueryError(f"One touch takes at most {TOUCH_BATCH} sessions; send the rest in another.")
    times: dict[str, int] = {}
    for session_key, seen_at_ms in seen.items():
        if type(seen_at_ms) is not int or not 0 <= seen_at_ms < 2**53:
            raise InvalidFieldError(f"The time of {session_key!r} must be milliseconds since 1970, a whole number.")
        session_key = validate_session_key(session_key)
        times[session_key] = max(seen_at_ms, times.get(session_key, 0))
    keyspace = context.keyspace
    return Call(
        load_script("touch"),
        (keyspace.index, keyspace.head, keyspace.changes, *keyspace.quota_keys[:2], *map(keyspace.session, times)),
        (
            op_id,
            context.ttl_ms,
            context.lease_ms,
            context.known_rev,
            keyspace.environment,
            *(part for pair in times.items() for part in pair),
        ),
        partial(_checked, decoder(replies.TouchReply), keyspace, "", False),
        writes=True,
    )


def page(
    keyspace: EnvironmentKeyspace, limit: int, after: tuple[int, str] | None, *, prefix: str = ""
) -> Call[replies.IndexPage]:
    """Read one page of the index, newest seen first, after the member that `after` names."""
    score, member = ("", "") if after is None else after
    return Call(
        load_script("page"),
        (keyspace.index, keyspace.environments),
        (keyspace.environment, limit, LOOK_BATCH if prefix else limit, score, member, prefix),
        partial(_checked, decoder(replies.IndexPage), keyspace, "", False),
    )


def read(keyspace: EnvironmentKeyspace, session_keys: Sequence[str]) -> Call[replies.SessionsReply]:
    """Read the named sessions, if they exist, in order; at most `READ_BATCH` normalised keys."""
    return Call(
        load_script("read"),
        tuple(map(keyspace.session, session_keys)),
        tuple(session_keys),
        decoder(replies.SessionsReply),
    )


def scan(keyspace: EnvironmentKeyspace, cursor: str, *, prefix: str = "") -> Call[replies.ScanReply]:
    """Read one page of the index in no order, for a snapshot; the cursor is ``"0"`` at first and at the end."""
    return Call(
        load_script("scan"),
        (keyspace.index, keyspace.environments),
        (cursor, LOOK_BATCH, prefix, keyspace.environment),
        decoder(replies.ScanReply),
    )


def snapshot(
    keyspace: EnvironmentKeyspace, cursor: str, session_keys: Sequence[str] = (), *, count: int = FIND_BATCH
) -> Call[replies.SnapshotReply]:
    """Read the sessions named, at most `SNAPSHOT_BATCH`, and find about `count` members of the index after the cursor.

    The cursor is ``"0"`` at first and at the end; with a count of 0 it stays where it is.
    """
    return Call(
        load_script("snapshot"),
        (keyspace.head, keyspace.index, *map(keyspace.session, session_keys)),
        (cursor, count, *session_keys),
        decoder(replies.SnapshotReply),
    )


def read_head(keyspace: EnvironmentKeyspace) -> Call[replies.HeadReply]:
    """Read the newest revision and its id."""
    return Call(load_script("head"), (keyspace.head,), (), decoder(replies.HeadReply))


def read_catalog(keyspace: EnvironmentKeyspace) -> Call[replies.CatalogReply]:
    """Read the environment's catalog, and the revision of its last change."""
    return Call(
        load_script("catalog_read"),
        (keyspace.catalog, keyspace.head, keyspace.environments),
        (),
        decoder(replies.CatalogReply),
    )


def apply_catalog(
    context: WriteContext,
    op_id: str,
    catalog: Catalog | None,
    session_keys: Sequence[str] = (),
    *,
    terms: Terms = DEFAULT_TERMS,
) -> Call[replies.CatalogApplied]:
    """Give the environment this catalog, in its canonical order, and register it; None removes both.

    The status need_sessions means that the script must check sessions of the index that `session_keys` lacks. The keys
    must be normalised.
    """
    keyspace = context.keyspace
    text = "" if catalog is None else _encode_json(catalog).decode()
    catalog = catalog or Catalog()
    local = [(mock.id, scenario.id) for scenario in catalog.scenarios for mock in scenario.local_mocks]
    entries = (
        *(part for mock in catalog.mocks for part in (mock.id, mock.name)),
        *(part for pair in local for part in pair),
        *(part for scenario in catalog.scenarios for part in (scenario.id, _encode_json(scenario).decode())),
    )
    names = (keyspace.environments, *keyspace.catalog_keys, keyspace.index, *keyspace.lease_keys, keyspace.changes)
    return Call(
        load_script("catalog_apply"),
        (*names, *keyspace.quota_keys[:2], *map(keyspace.session, session_keys)),
        (
            op_id,
            context.lease_ms,
            context.known_rev,
            "1" if terms.wait else "0",
            keyspace.environment,
            terms.actor,
            hashlib.sha256(text.encode()).hexdigest(),
            text,
            len(catalog.mocks),
            len(local),
            len(catalog.scenarios),
            *entries,
            *session_keys,
        ),
        decoder(replies.CatalogApplied),
        writes=True,
    )


def durable(keyspace: EnvironmentKeyspace, call: Call[T], replicas: int) -> DurableCall[T]:
    """Have a call wait until `replicas` replicas have every write to the primary up to it."""
    fence = Call(load_script("fence"), (keyspace.head,), (), decoder(Reply), writes=True)
    return DurableCall(call, fence, replicas)


def usage_begin(keyspace: EnvironmentKeyspace, count_id: str) -> Call[replies.UsageReply]:
    """Begin to count what the sessions of a project take; the reply names the count that goes on."""
    keys = (*keyspace.quota_keys[:2], keyspace.head)
    return Call(load_script("usage_begin"), keys, (count_id, keyspace.environment), decoder(replies.UsageReply))


def usage_find(keyspace: EnvironmentKeyspace, cursor: str) -> Call[replies.FoundReply]:
    """Find environments of a project that have sessions; the cursor is ``"0"`` at first and at the end."""
    project = keyspace.of_project
    arguments = (cursor, LOOK_BATCH, project.base)
    return Call(load_script("usage_find"), (project.usage,), arguments, decoder(replies.FoundReply))


def usage_add(keyspace: EnvironmentKeyspace, session_keys: Sequence[str]) -> Call[replies.Reply]:
    """Enter sessions into the count, at most `READ_BATCH` normalised keys; without any, an environment."""
    keys = (*keyspace.quota_keys[:2], keyspace.head, *map(keyspace.session, session_keys))
    return Call(load_script("usage_add"), keys, (keyspace.environment, *session_keys), decoder(replies.Reply))


def usage_end(keyspace: EnvironmentKeyspace, count_id: str) -> Call[replies.Reply]:
    """End a count: all sessions are in it."""
    return Call(load_script("usage_end"), keyspace.quota_keys[:2], (count_id,), decoder(replies.Reply))


def environments(keyspace: ProjectKeyspace) -> Call[replies.EnvironmentsReply]:
    """Read the environments that a project has registered."""
    return Call(load_script("environments"), (keyspace.environments,), (), decoder(replies.EnvironmentsReply))


def count(environments: Sequence[EnvironmentKeyspace]) -> Call[replies.CountsReply]:
    """Count the live sessions and views of environments of one project."""
    keys = tuple(key for names in environments for key in (names.index, names.head, names.leases))
    return Call(load_script("count"), keys, (), decoder(replies.CountsReply))


def lease_status(context: WriteContext, rev: int) -> Call[replies.LeaseStatusReply]:
    """Count the leases that have not applied `rev`."""
    keyspace = context.keyspace
    return Call(
        load_script("lease_status"),
        (*keyspace.lease_keys, keyspace.changes),
        (rev, context.lease_ms),
        decoder(replies.LeaseStatusReply),
    )


def join(
    keyspace: EnvironmentKeyspace, lease_id: str, lease_ms: int, info: str, applied_rev: int, applied_id: str
) -> Call[replies.LeaseReply]:
    """Take a lease. The id must never have been used before; `info` is JSON, see `replies.ViewInfo`."""
    return _lease_call("join", keyspace, (keyspace.changes,), lease_id, lease_ms, info, applied_rev, applied_id)


def renew(
    keyspace: EnvironmentKeyspace, lease_id: str, lease_ms: int, applied_rev: int, applied_id: str, epoch: str = ""
) -> Call[replies.LeaseReply]:
    """Extend a lease, and acknowledge the position of its view.

    `epoch` is the lease's if an answer has said that the position was acknowledged. Then there is less to do.
    """
    return _lease_call("renew", keyspace, (keyspace.changes,), lease_id, lease_ms, applied_rev, applied_id, epoch)


def ack(
    keyspace: EnvironmentKeyspace, lease_id: str, applied_rev: int, applied_id: str, epoch: str
) -> Call[replies.AckReply]:
    """Acknowledge the position of a lease's view; `epoch` is the lease's."""
    return Call(
        load_script("ack"),
        (*keyspace.lease_keys, keyspace.applied),
        (lease_id, applied_rev, applied_id, epoch),
        decoder(replies.AckReply),
    )


def leave(keyspace: EnvironmentKeyspace, lease_id: str) -> Call[replies.LeaseReply]:
    """Give a lease up. Its view must not call itself fresh any more."""
    return _lease_call("leave", keyspace, (), lease_id)


def _lease_call(
    script: str, keyspace: EnvironmentKeyspace, keys: tuple[str, ...], *args: str | int
) -> Call[replies.LeaseReply]:
    return Call(load_script(script), (*keyspace.lease_keys, *keys, keyspace.applied), args, decoder(replies.LeaseReply))


def views(keyspace: EnvironmentKeyspace) -> Call[replies.ViewsReply]:
    """Read the views that hold a lease."""
    return Call(load_script("views"), (keyspace.head, keyspace.leases, keyspace.views), (), decoder(replies.ViewsReply))


def _toggle(
    script: str,
    context: WriteContext,
    op_id: str,
    session_key: str,
    override: str,
    terms: Terms,
    bounds: tuple[int, ...],
) -> Call[replies.WriteReply]:
    keys = context.keyspace.catalog_keys[:3]
    args: tuple[str | int, ...] = (validate_override(override), *bounds)
    return _write(script, context, op_id, session_key, terms, keys=keys, args=args, creates=script == "activate")


def _write(
    script: str,
    context: WriteContext,
    op_id: str,
    session_key: str,
    terms: Terms,
    *,
    keys: tuple[str, ...] = (),
    args: tuple[str | int, ...] = (),
    declarative: bool = False,
    creates: bool = False,
) -> Call[replies.WriteReply]:
    """Prepend the keys and arguments that all writes share (scripts/lib/write.lua)."""
    session_key = validate_session_key(session_key)
    names = context.keyspace
    return Call(
        load_script(script),
        (names.session(session_key), *names.write_keys, *keys),
        (
            op_id,
            context.ttl_ms,
            context.lease_ms,
            context.known_rev,
            "1" if terms.wait else "0",
            names.environment,
            session_key,
            terms.actor,
            *(context.quotas.arguments if creates else ("", "")),
            *args,
        ),
        partial(_checked, decoder(replies.WriteReply), names, session_key, declarative),
        writes=True,
    )


def _if_match_argument(if_match: IfMatch | None) -> str:
    if if_match is None:
        return ""
    if if_match == "*":
        return "*"
    revisions = if_match if isinstance(if_match, Sequence) else (if_match,)
    if isinstance(revisions, str) or not all(type(revision) is int for revision in revisions):
        raise InvalidQueryError('if_match must be a revision, several of them, or "*".')
    return "," + ",".join(map(str, revisions)) + ","
