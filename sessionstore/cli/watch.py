"""``sessionstore watch``: print an environment's changes as they are published.

It subscribes to the channel and opens no view. Writers wait for a view's lease, and must not wait for a person who
stops the output with Ctrl+S.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import typer

from ..catalog.model import Catalog
from ..errors import CorruptDataError, StoreUnavailableError
from ..options import DEFAULT_DEADLINE_S
from ..protocol.calls import read_head
from ..protocol.keyspace import EnvironmentKeyspace
from ..protocol.messages import CatalogChanged, Change, ExpiryMoved, SessionDeleted, SessionSet, decode_change
from ..protocol.replies import HeadReply
from ..replica.chain import Chain, Inconsistent
from ..session import format_time
from ..sync.store import SessionStore
from ..transport.errors import FOREIGN_ERRORS, describe_loss
from .options import EnvironmentOption, JsonOption, ProjectOption, chosen_environment, on_store
from .output import count, delay_of, print_json, say, shown

#: Seconds without a message before the first heartbeat, from one to the next, and the most without an answer.
_HEARTBEAT_S = 5.0
_PAUSE_S = 1.0
_UNANSWERED = 5
#: Seconds between two tries to connect: the first pause and the longest.
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 5.0

_MISSED = "Changes may be missing here."


class History:
    """The chain of revisions across connections. It continues after a gap."""

    def __init__(self) -> None:
        self._chain: Chain | None = None

    def start(self, head: HeadReply) -> bool:
        """Take the head that was read after subscribing; return whether no change is missing before it."""
        before, self._chain = self._chain, Chain(head.rev, head.id, head.now)
        return before is None or (before.rev, before.id) == (head.rev, head.id)

    def follow(self, change: Change) -> bool:
        """Take the next change; return whether no change is missing before it."""
        assert self._chain is not None, "start comes first"
        try:
            self._chain.accept(change)
        except Inconsistent:
            self._chain = Chain(change.rev, change.id, 0)
            return False
        return True


@on_store
def watch(
    store: SessionStore,
    project: ProjectOption,
    environment: EnvironmentOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print changes as they are published.

    Ctrl+C ends it. --json prints each message on one line. If changes may be missing after a lost connection, a line on
    standard error says so, and with --json also {"type":"gap"}.
    """
    chosen = chosen_environment(store, project, environment)
    chosen.catalog()  # an unregistered environment never changes
    try:
        _watch(store, store.config.context(project, chosen.name).keyspace, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def describe(change: Change) -> str:
    """One line for a person."""
    match change:
        case SessionSet():
            what = _describe_session(change)
        case SessionDeleted():
            what = f"delete   {shown(change.session_key)}"
        case ExpiryMoved():
            moved = ", ".join(f"{shown(key)} until {format_time(expires)[:19]}Z" for key, expires, _ in change.sessions)
            what = f"expiry   {moved}"
        case CatalogChanged():
            what = f"catalog  {_describe_catalog(change.catalog)}"
    return f"{format_time(change.at)[11:23]}  #{change.rev}  {what}"


def _describe_session(change: SessionSet) -> str:
    session = change.session
    parts = [f"set      {shown(session.session_key)}"]
    if session.scenario is not None:
        parts.append(f"scenario={shown(session.scenario)}")
    if session.overrides:
        parts.append(f"overrides={','.join(map(shown, session.overrides))}")
    if (delay := delay_of(session)) != "0":
        parts.append(f"delay={delay}ms")
    if session.label is not None:
        parts.append(f'label="{shown(session.label)}"')
    return " ".join(parts)


def _describe_catalog(catalog: Catalog | None) -> str:
    if catalog is None:
        return "taken away"
    return f"{count(len(catalog.mocks), 'mock')}, {count(len(catalog.scenarios), 'scenario')}"


def _watch(store: SessionStore, keyspace: EnvironmentKeyspace, as_json: bool) -> None:
    """Follow the channel until Ctrl+C; reconnect after each loss."""
    history = History()
    pause_s = _FIRST_PAUSE_S
    in_touch = True
    changes = _follow(store, keyspace, history)
    while True:
        try:
            change, payload, complete = next(changes)
        except (*FOREIGN_ERRORS, StoreUnavailableError) as exc:
            if in_touch:
                reason = str(exc) if isinstance(exc, StoreUnavailableError) else f"{describe_loss(exc)}."
                say(f"Lost touch: {reason} Trying again until Ctrl+C.")
            in_touch = False
        except CorruptDataError as exc:
            say(str(exc))
        else:
            # Not in the try block: a failed write to the output must not count as a lost connection.
            if not in_touch:
                say("In touch with Redis again.")
            in_touch, pause_s = True, _FIRST_PAUSE_S
            if not complete:
                if as_json:
                    print_json({"type": "gap"})
                say(_MISSED)
            if change is not None:
                typer.echo(payload if as_json else describe(change))
            continue
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        changes = _follow(store, keyspace, history)


def _follow(
    store: SessionStore, keyspace: EnvironmentKeyspace, history: History
) -> Iterator[tuple[Change | None, str, bool]]:
    """Yield each change, its text, and whether no change is missing before it. The first is None, after subscribing."""
    route = store._runner.route_of(keyspace)
    link = route.connections.link
    connection = link.open(DEFAULT_DEADLINE_S)
    try:
        connection.send_command("SSUBSCRIBE", keyspace.changes)
        connection.read_response(timeout=DEFAULT_DEADLINE_S)
        yield None, "", history.start(route.connections.execute(read_head(keyspace)))
        unanswered = 0
        while True:
            if not connection.can_read(timeout=_PAUSE_S if unanswered else _HEARTBEAT_S):
                if unanswered > _UNANSWERED:
                    raise TimeoutError("Redis did not answer on the subscription")
                unanswered += 1
                # If the channel's slot is elsewhere by now, the server refuses.
                connection.send_command("SSUBSCRIBE", keyspace.changes)
                continue
            kind, _, payload, *_ = connection.read_response(timeout=DEFAULT_DEADLINE_S)
            if kind == b"smessage":
                change = decode_change(payload)
                yield change, payload.decode(), history.follow(change)
            elif kind != b"ssubscribe" or not unanswered:
                raise TimeoutError(f"the subscription was ended ({kind.decode()})")
            else:
                unanswered -= 1
    except FOREIGN_ERRORS as exc:
        link.doubt(exc)
        raise
    finally:
        connection.disconnect()
