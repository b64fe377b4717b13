"""The messages on the two channels of an environment.

``changes`` carries one message for each revision, in commit order, with the full new state. ``rev`` and ``prev`` make a
chain: the receiver has missed nothing if ``rev`` is one above its own and ``prev`` equals its id. ``applied`` carries
the revision that every live view has applied.

All are JSON, UTF-8; times are ms since 1970 in Redis time. Ignore unknown fields, but not an unknown ``type``.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ..catalog.model import Catalog
from ..errors import CorruptDataError


class SessionState(Struct, rename="camel", frozen=True, gc=False):
    """A session's state in replies and messages."""

    session_key: str
    rev: int
    label: str | None
    scenario: str | None
    overrides: tuple[str, ...]
    global_delay_ms: int
    global_delay_max_ms: int
    created_at: int
    last_seen_at: int
    expires_at: int


class _Change(Struct, rename="camel", tag_field="type", frozen=True, kw_only=True):
    rev: int
    id: str
    prev: str
    #: when it was committed
    at: int
    #: whether a writer waits until every view has applied it
    wait: bool = False
    #: the epoch in which it was published; empty before the first lease
    epoch: str = ""


class SessionSet(_Change, tag="set", frozen=True, kw_only=True):
    """A session was created or changed."""

    session: SessionState


class SessionDeleted(_Change, tag="delete", frozen=True, kw_only=True):
    """A session was deleted."""

    session_key: str


class ExpiryMoved(_Change, tag="expiry", frozen=True, kw_only=True):
    """Sessions expire later: session key, expiresAt, lastSeenAt."""

    sessions: tuple[tuple[str, int, int], ...]


class CatalogChanged(_Change, tag="catalog", frozen=True, kw_only=True):
    """The environment's catalog was changed, or removed (None)."""

    catalog: Catalog | None


Change = SessionSet | SessionDeleted | ExpiryMoved | CatalogChanged


class Applied(Struct, frozen=True, gc=False):
    """Every live view has applied `rev`.

    `live` counts these views, `expired` the leases that ever expired. `epoch` is that of the leases.
    """

    rev: int
    live: int
    expired: int
    epoch: str = ""


_changes = msgspec.json.Decoder(Change)
_applied = msgspec.json.Decoder(Applied)


def decode_change(payload: bytes | str) -> Change:
    """Decode a message of the ``changes`` channel.

    Raises
    ------
    CorruptDataError
    """
    try:
        change: Change = _changes.decode(payload)
        return change
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise CorruptDataError(f"A message on the changes channel does not decode: {exc}.") from exc


def decode_applied(payload: bytes | str) -> Applied:
    """Decode a message of the ``applied`` channel.

    Raises
    ------
    CorruptDataError
    """
    try:
        return _applied.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise CorruptDataError(f"A message on the applied channel does not decode: {exc}.") from exc
