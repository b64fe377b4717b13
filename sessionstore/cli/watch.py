"""``sessionstore watch``: print an environment's changes as they are published.

It subscribes to the channel itself instead of opening a view. Writers wait for a view's lease; they must not wait for a
person who stops the output with Ctrl+S.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import redis
import typer

from ..catalog.model import Catalog
from ..errors import CorruptDataError, StoreUnavailableError
from ..options import DEFAULT_DEADLINE_S
from ..protocol.calls import read_head
from ..protocol.keyspace import DEFAULT_PREFIX, EnvironmentKeyspace
from ..protocol.messages import CatalogChanged, Change, ExpiryMoved, SessionDeleted, SessionSet, decode_change
from ..session import format_time
from ..sync.connections import Connections
from ..sync.store import SessionStore
from ..transport.connect import client_options
from ..transport.errors import FOREIGN_ERRORS, describe_loss
from .options import (
    EnvironmentOption,
    JsonOption,
    PrefixOption,
    ProjectOption,
    RedisUrlOption,
    chosen_environment,
    opened,
)
from .output import print_json, say, shown

#: Seconds without a message before it sends a PING, and then seconds before it drops the connection.
_HEARTBEAT_S = 5.0
#: Seconds between two tries to connect, at first and at most.
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 5.0

_MISSED = "Changes may be missing here."


class Chain:
    """The last revision that a watcher saw. It detects missed changes by it."""

    def __init__(self) -> None:
        self._rev: int | None = None
        self._id = ""

    def start(self, rev: int, head_id: str) -> bool:
        """Take the head that was read after subscribing; true where it is the last change that was seen."""
        complete = self._rev is None or (self._rev, self._id) == (rev, head_id)
        self._rev, self._id = rev, head_id
        return complete

    def was_counted(self, change: Change) -> bool:
        """Whether a change that came before the head was read is part of it."""
        return self._rev is not None and change.rev <= self._rev

    def follow(self, change: Change) -> bool:
        """Take the next change; true where it is the very next one."""
        complete = self._rev is not None and (change.rev, change.prev) == (self._rev + 1, self._id)
        self._rev, self._id = change.rev, change.id
        return complete


def watch(
    project: ProjectOption,
    environment: EnvironmentOption = None,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """Print changes as they are published.

    Until Ctrl+C. --json prints the messages as they are, one a line. Where it lost touch with Redis and may have missed
    something, it says so on standard error, and with --json also as {"type":"gap"}.
    """
    with opened(redis_url, prefix) as store:
        assert redis_url is not None, "opened refuses that"
        chosen = chosen_environment(store, project, environment)
        chosen.catalog()  # an environment that is not registered would never change
        keyspace = store.config.context(project, chosen.name).keyspace
        try:
            _watch(store, redis_url, keyspace, as_json)
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
    if session.global_delay_max_ms > session.global_delay_ms:
        parts.append(f"delay={session.global_delay_ms}-{session.global_delay_max_ms}ms")
    elif session.global_delay_ms:
        parts.append(f"delay={session.global_delay_ms}ms")
    if session.label is not None:
        parts.append(f'label="{shown(session.label)}"')
    return " ".join(parts)


def _describe_catalog(catalog: Catalog | None) -> str:
    if catalog is None:
        return "taken away"
    return f"{_count(len(catalog.mocks), 'mock')}, {_count(len(catalog.scenarios), 'scenario')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _watch(store: SessionStore, redis_url: str, keyspace: EnvironmentKeyspace, as_json: bool) -> None:
    """Follow the channel until Ctrl+C; reconnect after each loss."""
    chain = Chain()
    pause_s = _FIRST_PAUSE_S
    in_touch = True
    changes = _follow(store, redis_url, keyspace, chain)
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
                _note_gap(as_json)
            if change is not None:
                typer.echo(payload if as_json else describe(change))
            continue
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        changes = _follow(store, redis_url, keyspace, chain)


def _note_gap(as_json: bool) -> None:
    if as_json:
        print_json({"type": "gap"})
    say(_MISSED)


def _follow(
    store: SessionStore, redis_url: str, keyspace: EnvironmentKeyspace, chain: Chain
) -> Iterator[tuple[Change | None, str, bool]]:
    """Each change of one link, with its text and whether nothing is missing before it; first None, once it listens."""
    client: Any = redis.Redis.from_url(redis_url, **client_options(DEFAULT_DEADLINE_S))
    with client, client.pubsub() as pubsub:
        pubsub.subscribe(keyspace.changes)
        if pubsub.get_message(timeout=DEFAULT_DEADLINE_S) is None:
            raise TimeoutError("Redis did not confirm the subscription")
        head = Connections(store.connection_pool, store.config).execute(read_head(keyspace))
        complete = chain.start(head.rev, head.id)
        yield None, "", complete
        # What was published before the head was read comes before the answer to this.
        pubsub.ping()
        counted = True
        quiet_since = time.monotonic()
        pinged = True
        while True:
            message = pubsub.get_message(timeout=1.0)
            now = time.monotonic()
            if message is None:
                if now - quiet_since > 2 * _HEARTBEAT_S:
                    raise TimeoutError("Redis did not answer a PING on the subscription")
                if now - quiet_since > _HEARTBEAT_S and not pinged:
                    pubsub.ping()
                    pinged = True
                continue
            quiet_since, pinged = now, pinged and message["type"] != "pong"
            match message["type"]:
                case "pong":
                    counted = False
                case "message":
                    payload = message["data"]
                    change = decode_change(payload)
                    seen = counted and chain.was_counted(change)
                    yield change, _text(payload), seen or chain.follow(change)
                case kind:
                    raise TimeoutError(f"the subscription was set up anew ({kind})")


def _text(payload: bytes | str) -> str:
    return payload if isinstance(payload, str) else payload.decode()
