"""What a store's API keys promise, with each driver and server."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sessionstore import (
    ApiKey,
    ApiKeyNotFoundError,
    AsyncSessionStore,
    CorruptDataError,
    InvalidFieldError,
    InvalidSlugError,
    KeyRing,
    Refusal,
    StoreClosedError,
    TooManyApiKeysError,
)
from sessionstore.api_keys import operations as api_keys
from sessionstore.api_keys.model import MAX_ACTIVE_KEYS, MAX_ENDED_KEYS, generate_secret, hash_secret, id_of

from ..support.adapter import Backend


def in_ms(ms: int) -> int:
    return time.time_ns() // 1_000_000 + ms


async def test_a_key_is_created_listed_and_found_by_its_hash_alone(backend: Backend, store: AsyncSessionStore) -> None:
    # Given an org-wide key and one of a project
    expires_at = in_ms(60_000)
    everywhere = await store.api_keys.create("nightly")
    scoped = await store.api_keys.create("Zürich 🔑", project="checkout", expires_at=expires_at)

    # Then both are listed, oldest first, and each opens what it should
    assert {key.id for key in await store.api_keys.list()} == {everywhere.key.id, scoped.key.id}
    ring = KeyRing()
    ring.load(await store.api_keys.snapshot(), 0.0)
    assert ring.authenticate(everywhere.secret, 0.0) == everywhere.key
    assert ring.authenticate(scoped.secret, 0.0) == scoped.key
    assert (scoped.key.name, scoped.key.project, scoped.key.expires_at) == ("Zürich 🔑", "checkout", expires_at)
    assert (everywhere.key.project, everywhere.key.expires_at, everywhere.key.revoked_at) == (None, None, None)
    # Then Redis holds the hash, and the secret nowhere
    stored = backend.raw.hgetall(f"{backend.prefix}:keys")
    assert _texts(stored.keys()) == {hash_secret(everywhere.secret), hash_secret(scoped.secret)}
    assert everywhere.secret not in str(stored)
    assert everywhere.secret[4:] not in str(stored)


def _texts(values: Any) -> set[str]:
    return {value if isinstance(value, str) else value.decode() for value in values}


async def test_creates_another_key_if_the_id_is_taken(
    store: AsyncSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a source of keys that repeats itself
    first, second = generate_secret(), generate_secret()
    secrets = iter([first, first, first, second])
    monkeypatch.setattr(api_keys, "generate_secret", lambda: next(secrets))
    # When two keys are created, then they differ
    assert [(await store.api_keys.create("ci")).secret, (await store.api_keys.create("ci")).secret] == [first, second]
    # When every key repeats, then creating one fails
    monkeypatch.setattr(api_keys, "generate_secret", lambda: first)
    with pytest.raises(CorruptDataError, match="random"):
        await store.api_keys.create("ci")


async def test_a_revoked_key_is_refused_and_stays_listed(store: AsyncSessionStore) -> None:
    new = await store.api_keys.create("ci")
    revoked = await store.api_keys.revoke(new.key.id)
    assert revoked.revoked_at is not None
    # When it is revoked again, then the time stays
    assert await store.api_keys.revoke(new.key.id) == revoked
    assert await store.api_keys.list() == (revoked,)
    ring = KeyRing()
    ring.load(await store.api_keys.snapshot(), 0.0)
    assert ring.authenticate(new.secret, 0.0) is Refusal.REVOKED


async def test_revoking_an_unknown_key_fails(store: AsyncSessionStore) -> None:
    with pytest.raises(ApiKeyNotFoundError, match="000000000000"):
        await store.api_keys.revoke("000000000000")


async def test_limits_the_number_of_active_keys(store: AsyncSessionStore) -> None:
    # Given the largest number of active keys
    first = await store.api_keys.create("first")
    for _ in range(24):
        await store.api_keys.create("more")
    # When another key is created, then the store refuses it
    with pytest.raises(
        TooManyApiKeysError, match="25 active API keys, the most allowed; revoke one, or allow up to 1000"
    ):
        await store.api_keys.create("too many")
    assert len(await store.api_keys.list()) == 25
    # When a key is revoked, then another can be created
    await store.api_keys.revoke(first.key.id)
    await store.api_keys.create("again")
    with pytest.raises(TooManyApiKeysError):
        await store.api_keys.create("too many")
    # When more are allowed, then more can be created
    await store.api_keys.create("26th", max_active=26)
    with pytest.raises(TooManyApiKeysError, match="26 active"):
        await store.api_keys.create("too many", max_active=26)


async def test_the_use_of_a_thousand_keys_is_recorded(store: AsyncSessionStore, backend: Backend) -> None:
    # Given the largest number of active keys that a caller may allow
    records = {hash_secret(str(n)): key_record(hash_secret(str(n))) for n in range(MAX_ACTIVE_KEYS)}
    backend.raw.hset(f"{backend.prefix}:keys", mapping=records)
    with pytest.raises(TooManyApiKeysError, match="1000 active"):
        await store.api_keys.create("too many", max_active=MAX_ACTIVE_KEYS)

    # When all of them were used
    snapshot = await store.api_keys.snapshot()
    uses = {key.id: snapshot.now for key in snapshot.keys.values()}
    assert await store.api_keys.mark_used(uses) == MAX_ACTIVE_KEYS

    # Then each says when
    assert {key.last_used_at for key in await store.api_keys.list()} == {snapshot.now}


def key_record(digest: str) -> str:
    return json.dumps({**SOUND, "id": id_of(digest), "name": "one of many", "project": None})


async def test_drops_keys_that_ended_long_ago(store: AsyncSessionStore) -> None:
    for _ in range(MAX_ENDED_KEYS + 5):
        await store.api_keys.revoke((await store.api_keys.create("short")).key.id)
    assert len(await store.api_keys.list()) == MAX_ENDED_KEYS + 1


async def test_records_a_use_once_a_minute(store: AsyncSessionStore) -> None:
    # Given two keys
    first = (await store.api_keys.create("first")).key
    second = (await store.api_keys.create("second")).key
    # When both are used twice: the first after 70 s, the second after 5 s
    now = (await store.api_keys.snapshot()).now
    assert await store.api_keys.mark_used({first.id: now - 70_000, second.id: now - 5_000}) == 2
    assert await store.api_keys.mark_used({first.id: now, second.id: now}) == 1
    # Then only the use after 70 s is written again
    assert {key.id: key.last_used_at for key in await store.api_keys.list()} == {first.id: now, second.id: now - 5_000}
    # When there is no use to record, or no key to record it for, then nothing happens
    assert await store.api_keys.mark_used({}) == 0
    assert await store.api_keys.mark_used({"000000000000": now}) == 0


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"name": ""}, InvalidFieldError),
        ({"name": "  "}, InvalidFieldError),
        ({"name": "x" * 201}, InvalidFieldError),
        ({"name": "a\nb"}, InvalidFieldError),
        ({"name": None}, InvalidFieldError),
        ({"project": "a:b"}, InvalidSlugError),
        ({"project": ""}, InvalidSlugError),
        ({"expires_at": 5}, InvalidFieldError),
        ({"expires_at": -1}, InvalidFieldError),
        ({"expires_at": 1.5}, InvalidFieldError),
        ({"expires_at": 2**53}, InvalidFieldError),
        ({"max_active": 0}, InvalidFieldError),
        ({"max_active": 1001}, InvalidFieldError),
        ({"max_active": True}, InvalidFieldError),
    ],
)
async def test_bad_input_creates_nothing(store: AsyncSessionStore, fields: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        await store.api_keys.create(**{"name": "ci", **fields})
    assert await store.api_keys.list() == ()


@pytest.mark.parametrize("key_id", ["", "fmk_secret", "0" * 11, "0" * 13, "A" * 12, "0" * 12 + "\n", None])
async def test_does_not_quote_an_invalid_id(store: AsyncSessionStore, key_id: Any) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        await store.api_keys.revoke(key_id)
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidFieldError):
        await store.api_keys.mark_used({key_id: 1})
    with pytest.raises(InvalidFieldError):
        await store.api_keys.mark_used({"0" * 12: -1})


SOUND = {
    "id": "0" * 12,
    "name": "n",
    "project": "checkout",
    "createdAt": 1,
    "expiresAt": None,
    "revokedAt": None,
    "lastUsedAt": None,
}
CORRUPT = {
    "no JSON": "nonsense",
    "empty": "",
    "not UTF-8": json.dumps({**SOUND, "name": "N"}).encode().replace(b"N", b"\xff"),
    "a number": "5",
    "a list": "[]",
    "too deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "cut off": json.dumps(SOUND)[:-1],
    "other members": json.dumps(SOUND) + ',"x":{}',
    **{f"no {name}": json.dumps({key: value for key, value in SOUND.items() if key != name}) for name in SOUND},
    **{f"{name} of a wrong type": json.dumps({**SOUND, name: [1]}) for name in SOUND},
    "another's id": json.dumps({**SOUND, "id": "1" * 12}),
    "a project that is no slug": json.dumps({**SOUND, "project": "a:b"}),
    "no project at all": json.dumps({**SOUND, "project": ""}),
    "a fraction": json.dumps({**SOUND, "expiresAt": 1.5}),
    "a time as text": json.dumps({**SOUND, "expiresAt": "1"}),
    "a huge time": json.dumps({**SOUND, "expiresAt": 1e300}),
}


@pytest.mark.parametrize("name", CORRUPT)
async def test_a_corrupt_record_opens_nothing_and_harms_no_other(
    backend: Backend, store: AsyncSessionStore, name: str
) -> None:
    # Given two keys, and a corrupt record between them
    first = await store.api_keys.create("first")
    backend.raw.hset(f"{backend.prefix}:keys", "0" * 64, CORRUPT[name])
    second = await store.api_keys.create("second", project="checkout")

    # Then every operation on the others works, and the record is known by its id
    snapshot = await store.api_keys.snapshot()
    assert set(snapshot.keys.values()) == {first.key, second.key}
    assert snapshot.corrupt == ("0" * 12,)
    assert set(await store.api_keys.list()) == {first.key, second.key}
    assert await store.api_keys.mark_used({first.key.id: snapshot.now, "0" * 12: snapshot.now}) == 1
    assert (await store.api_keys.revoke(second.key.id)).revoked_at is not None

    # And revoking it removes it
    assert (await store.api_keys.revoke("0" * 12)).name == "corrupt"
    assert (await store.api_keys.snapshot()).corrupt == ()
    with pytest.raises(ApiKeyNotFoundError):
        await store.api_keys.revoke("0" * 12)


@pytest.mark.parametrize("field", ["", "x", b"\xff\x00", "0" * 63, "0" * 65, "0" * 11 + "g" * 53], ids=repr)
async def test_a_field_that_is_no_hash_is_corrupt(
    backend: Backend, store: AsyncSessionStore, field: str | bytes
) -> None:
    key = await store.api_keys.create("ci")
    backend.raw.hset(f"{backend.prefix}:keys", field, json.dumps(SOUND))

    snapshot = await store.api_keys.snapshot()

    assert list(snapshot.keys.values()) == [key.key]
    [key_id] = snapshot.corrupt
    await store.api_keys.revoke(key_id)
    assert (await store.api_keys.snapshot()).corrupt == ()


async def test_a_hash_of_a_wrong_type_is_reported(backend: Backend, store: AsyncSessionStore) -> None:
    backend.raw.set(f"{backend.prefix}:keys", "nonsense")
    with pytest.raises(CorruptDataError, match="look at the keys with redis-cli"):
        await store.api_keys.list()


async def test_requests_of_each_key_are_counted_over_all_stores(backend: Backend, store: AsyncSessionStore) -> None:
    one, other = "0123456789ab", "ba9876543210"
    async with backend.store() as neighbour:
        counts = [
            await keys.count_request(key, 60)
            for key in (one, one, other)
            for keys in (store.api_keys, neighbour.api_keys)
        ]

    assert [count.requests for count in counts] == [1, 2, 3, 4, 1, 2]
    assert all(0 < count.left <= 60_000 for count in counts)


@pytest.mark.parametrize("window_s", [0, -1, 1_000_000, 1.5, "60", True, None])
async def test_a_window_out_of_bounds_counts_nothing(backend: Backend, store: AsyncSessionStore, window_s: Any) -> None:
    with pytest.raises(InvalidFieldError, match="1 to 999,999"):
        await store.api_keys.count_request("0123456789ab", window_s)
    assert not backend.raw.keys(f"{backend.prefix}:limits:*")


@pytest.mark.parametrize("key_id", ["", "x", "0123456789AB", "0123456789ab0", None])
async def test_a_count_needs_the_id_of_a_key(backend: Backend, store: AsyncSessionStore, key_id: Any) -> None:
    with pytest.raises(InvalidFieldError, match="twelve hexadecimal digits"):
        await store.api_keys.count_request(key_id, 60)


async def test_a_counter_of_a_wrong_type_is_reported(backend: Backend, store: AsyncSessionStore) -> None:
    counter = f"{backend.prefix}:limits:{{{backend.prefix}:keys}}:0123456789ab"
    backend.raw.hset(counter, "no", "counter")
    with pytest.raises(CorruptDataError):
        await store.api_keys.count_request("0123456789ab", 60)


async def test_a_closed_store_refuses_each_operation(backend: Backend) -> None:
    async with backend.store() as store:
        keys = store.api_keys
    with pytest.raises(StoreClosedError):
        await keys.list()


async def test_each_operation_is_one_round_trip(backend: Backend) -> None:
    scripts: list[str] = []
    async with backend.store(observe=lambda script, _seconds, _error: scripts.append(script)) as store:
        key: ApiKey = (await store.api_keys.create("ci")).key
        await store.api_keys.list()
        await store.api_keys.mark_used({key.id: 1})
        await store.api_keys.count_request(key.id, 60)
        await store.api_keys.revoke(key.id)
    assert scripts == ["key_create", "key_list", "key_used", "key_count", "key_revoke"]
