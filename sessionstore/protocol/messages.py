"""What is published on the two channels of an environment.

``changes`` carries one message for each revision, in commit order, with the full new state. ``rev`` and ``prev`` make
a chain: a receiver has missed nothing where the next message has ``rev`` one above its own and ``prev`` equal to the
id it has. ``applied`` carries the revision that every live view has applied.

All are JSON, UTF-8; times are ms since 1970 in Redis time. Ignore unknown fields, but not an unknown ``type``.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ..catalog.model import Catalog
from ..errors import CorruptDataError


class SessionState(Struct, rename="camel", frozen=True, gc=False):
    """A session's state as scripts write it into replies and messages."""

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
    #: a writer waits until every view has applied it, so an acknowledgement is wanted at once
    wait: bool = False
    #: in which it was published; empty before the first lease
    epoch: str = ""


class SessionSet(_Change, tag="set", frozen=True, kw_only=True):
    """A session has this state now."""

    session: SessionState


class SessionDeleted(_Change, tag="delete", frozen=True, kw_only=True):
    """A session is gone."""

    session_key: str


class ExpiryMoved(_Change, tag="expiry", frozen=True, kw_only=True):
    """Sessions live longer: session key, expiresAt, lastSeenAt."""

    sessions: tuple[tuple[str, int, int], ...]


class CatalogChanged(_Change, tag="catalog", frozen=True, kw_only=True):
    """The environment has this catalog now; None: it has none."""

    catalog: Catalog | None


Change = SessionSet | SessionDeleted | ExpiryMoved | CatalogChanged


class Applied(Struct, frozen=True, gc=False):
    """Every live view has applied `rev`; `live` is how many there are, `expired` how many leases ever ran out.

    `epoch` is that in which they took their leases.
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
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise CorruptDataError(f"A message on the changes channel does not decode: {exc}.") from exc


def decode_applied(payload: bytes | str) -> Applied:
    """Decode a message of the ``applied`` channel.

    Raises
    ------
    CorruptDataError
    """
    try:
        return _applied.decode(payload)
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise CorruptDataError(f"A message on the applied channel does not decode: {exc}.") from exc
