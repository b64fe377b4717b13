"""The operations on API keys, as generators like those of protocol/operations.py."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from msgspec import Struct

from ..errors import ApiKeyNotFoundError, CorruptDataError, InvalidFieldError, SessionStoreError, TooManyApiKeysError
from ..protocol.calls import Call
from ..protocol.keyspace import StoreKeyspace
from ..protocol.replies import Payload, Reply, decoder
from ..protocol.scripts import load_script
from ..session import MAX_TIME_MS, is_slug, validate_slug
from .model import (
    DEFAULT_ACTIVE_KEYS,
    MAX_ACTIVE_KEYS,
    MAX_ENDED_KEYS,
    MAX_NAME_LENGTH,
    MAX_WINDOW_S,
    USED_INTERVAL_MS,
    ApiKey,
    KeySnapshot,
    NewApiKey,
    RequestCount,
    generate_secret,
    hash_secret,
    id_of,
    is_id,
)

#: Attempts to make a key with a free id; even a second attempt is very unlikely.
_ATTEMPTS = 5

#: Keys whose use one script records.
_USED_BATCH = 100

T = TypeVar("T")

KeyOperation = Generator[Call[Any], Any, T]


class _KeyReply(Reply, frozen=True, kw_only=True):
    now: int = 0
    key: ApiKey | None = None


class _UsedReply(Struct, frozen=True):
    now: int
    written: int


def create(
    keyspace: StoreKeyspace,
    name: str,
    *,
    project: str | None = None,
    expires_at: int | None = None,
    max_active: int = DEFAULT_ACTIVE_KEYS,
) -> KeyOperation[NewApiKey]:
    """Make a key and store its hash."""
    name = _validate_name(name)
    if project is not None:
        validate_slug(project, "project")
    if expires_at is not None and (type(expires_at) is not int or not 0 <= expires_at <= MAX_TIME_MS):
        raise InvalidFieldError(
            "expires_at must be a time in milliseconds since 1970, a whole number, and no later than the year 9999."
        )
    if type(max_active) is not int or not 1 <= max_active <= MAX_ACTIVE_KEYS:
        raise InvalidFieldError(f"max_active must be a whole number from 1 to {MAX_ACTIVE_KEYS}.")
    expiry = "" if expires_at is None else expires_at
    for _ in range(_ATTEMPTS):
        secret = generate_secret()
        try:
            reply = yield Call(
                load_script("key_create"),
                (keyspace.api_keys,),
                (hash_secret(secret), name, project or "", expiry, max_active, MAX_ENDED_KEYS),
                _decode_key,
                writes=True,
            )
        except _IdTakenError:
            continue
        return NewApiKey(reply.key, secret)
    raise CorruptDataError("Every new key had the id of another key; is the system's random number source broken?")


def snapshot(keyspace: StoreKeyspace) -> KeyOperation[KeySnapshot]:
    """Read every record, for a `KeyRing`."""
    try:
        reply: KeySnapshot = yield Call(load_script("key_list"), (keyspace.api_keys,), ("",), _decode_records)
    except CorruptDataError:
        # One corrupt record must not hide the others. The script finds it, at a cost.
        reply = yield Call(load_script("key_list"), (keyspace.api_keys,), ("1",), decoder(KeySnapshot))
    return reply


def list_keys(keyspace: StoreKeyspace) -> KeyOperation[tuple[ApiKey, ...]]:
    """Read every record, oldest first."""
    reply = yield from snapshot(keyspace)
    return tuple(sorted(reply.keys.values(), key=lambda key: (key.created_at, key.id)))


def revoke(keyspace: StoreKeyspace, key_id: str) -> KeyOperation[ApiKey]:
    """Revoke one key."""
    key_id = _validate_id(key_id)
    reply = yield Call(load_script("key_revoke"), (keyspace.api_keys,), (key_id,), _decode_key, writes=True)
    key: ApiKey = reply.key
    return key


def mark_used(keyspace: StoreKeyspace, used: Mapping[str, int]) -> KeyOperation[int]:
    """Record when keys were last used, in batches; returns how many records changed."""
    uses: list[tuple[str, int]] = []
    for key_id, used_at_ms in used.items():
        if type(used_at_ms) is not int or not 0 <= used_at_ms < 2**53:
            raise InvalidFieldError("A key's time of use must be milliseconds since 1970, a whole number.")
        uses.append((_validate_id(key_id), used_at_ms))
    written = 0
    for start in range(0, len(uses), _USED_BATCH):
        pairs = [part for use in uses[start : start + _USED_BATCH] for part in use]
        reply = yield Call(
            load_script("key_used"), (keyspace.api_keys,), (USED_INTERVAL_MS, *pairs), decoder(_UsedReply), writes=True
        )
        written += reply.written
    return written


def count_request(keyspace: StoreKeyspace, key_id: str, window_s: int) -> KeyOperation[RequestCount]:
    """Count a request of one key."""
    if type(window_s) is not int or not 1 <= window_s <= MAX_WINDOW_S:
        raise InvalidFieldError(f"window_s must be a whole number from 1 to {MAX_WINDOW_S:,}.")
    counter = keyspace.requests(_validate_id(key_id))
    count: RequestCount = yield Call(
        load_script("key_count"), (counter,), (window_s * 1000,), decoder(RequestCount), writes=True
    )
    return count


def _validate_name(name: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InvalidFieldError("A key needs a name, so that people know what it is for.")
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidFieldError(f"A key's name must be printable and at most {MAX_NAME_LENGTH} characters long.")
    return name


def _validate_id(key_id: str) -> str:
    # The message does not quote the value: it may be the key itself.
    if not isinstance(key_id, str) or not is_id(key_id):
        raise InvalidFieldError("A key is named by its id, twelve hexadecimal digits, as the list of keys shows it.")
    return key_id


class _IdTakenError(SessionStoreError):
    """Another key has the same id."""


def _decode_records(payload: Payload) -> KeySnapshot:
    snapshot = decoder(KeySnapshot)(payload)
    for digest, key in snapshot.keys.items():
        if key.id != id_of(digest) or not (key.project is None or is_slug(key.project)):
            raise CorruptDataError(f"The record of the API key {id_of(digest)} is corrupt.")
    return snapshot


def _decode_key(payload: Payload) -> _KeyReply:
    reply = decoder(_KeyReply)(payload)
    match reply.status:
        case "ok":
            return reply
        case "taken":
            raise _IdTakenError
        case "too_many_keys":
            raise TooManyApiKeysError(
                f"There are {reply.detail} active API keys, the most allowed; revoke one, or allow up to "
                f"{MAX_ACTIVE_KEYS} with max_active."
            )
        case "expires_in_past":
            raise InvalidFieldError("expires_at is in the past, by Redis's clock; give a later time.")
        case "key_not_found":
            raise ApiKeyNotFoundError(f"There is no API key with the id {reply.detail!r}; the list of keys shows all.")
    raise CorruptDataError(f"A script answered the status {reply.status!r}, which this version does not know.")
