"""key_create.lua: store a new API key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..support.scripts import Scripts


def hash_of(n: int) -> str:
    return f"{n:012x}" + "0" * 52


def create(
    scripts: Scripts,
    digest: str = hash_of(1),
    name: str = "ci",
    project: str = "",
    expires_at: int | str = "",
    *,
    active: int = 25,
    ended: int = 100,
) -> dict[str, Any]:
    return scripts.run("key_create", [f"{scripts.prefix}:keys"], [digest, name, project, expires_at, active, ended])


def stored(scripts: Scripts) -> dict[str, Any]:
    """The records as they are, by hash."""
    return {digest: json.loads(text) for digest, text in scripts.redis.hgetall(f"{scripts.prefix}:keys").items()}


def store(scripts: Scripts, digest: str, **fields: Any) -> None:
    """Write a record by hand."""
    record = {"id": digest[:12], "name": "by hand", "project": None, "createdAt": 1, "expiresAt": None}
    record |= {"revokedAt": None, "lastUsedAt": None, **fields}
    scripts.redis.hset(f"{scripts.prefix}:keys", digest, json.dumps(record))


def test_stores_a_record_by_the_hash_and_answers_with_it(scripts: Scripts) -> None:
    # Given nothing, when a key with every field is created
    expires_at = scripts.now() + 60_000
    reply = create(scripts, hash_of(1), 'Zürich "ü"\\ 🔑', "checkout", expires_at)

    # Then its record is all there is, and its id is how the hash begins
    record = {
        "id": "000000000001",
        "name": 'Zürich "ü"\\ 🔑',
        "project": "checkout",
        "createdAt": reply["now"],
        "expiresAt": expires_at,
        "revokedAt": None,
        "lastUsedAt": None,
    }
    assert reply == {"status": "ok", "now": reply["now"], "key": record}
    assert stored(scripts) == {hash_of(1): record}


def test_a_key_without_project_and_expiry_has_null_there(scripts: Scripts) -> None:
    record = create(scripts)["key"]
    assert record["project"] is None
    assert record["expiresAt"] is None


def test_refuses_an_expiry_that_has_passed(scripts: Scripts) -> None:
    # Given the time of this server, when a key is to expire then
    now = scripts.now()
    reply = create(scripts, expires_at=now)

    # Then nothing is stored
    assert reply["status"] == "expires_in_past"
    assert stored(scripts) == {}


def test_refuses_an_id_that_is_taken_and_keeps_the_other_key(scripts: Scripts) -> None:
    # Given a key, when another with the same first twelve digits is created
    create(scripts, hash_of(1), "first")
    reply = create(scripts, hash_of(1)[:12] + "f" * 52, "second")

    assert reply == {"status": "taken", "detail": "000000000001"}
    assert [record["name"] for record in stored(scripts).values()] == ["first"]


def test_counts_only_active_keys(scripts: Scripts) -> None:
    # Given as many active keys as may be, one that was revoked and one that has expired
    create(scripts, hash_of(1), active=2)
    create(scripts, hash_of(2), active=2)
    store(scripts, hash_of(3), revokedAt=5)
    store(scripts, hash_of(4), expiresAt=scripts.now())

    # When one more is created, then it is refused and nothing is stored
    before = scripts.everything()
    assert create(scripts, hash_of(5), active=2) == {"status": "too_many_keys", "detail": "2"}
    assert scripts.everything() == before

    # When one of them ends, then there is room
    store(scripts, hash_of(2), revokedAt=5)
    assert create(scripts, hash_of(5), active=2)["status"] == "ok"


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_forgets_the_keys_that_ended_longest_ago(scripts: Scripts, ended: int) -> None:
    # Given three keys that have ended: the second one first, then the third, then the first
    store(scripts, hash_of(1), revokedAt=300)
    store(scripts, hash_of(2), expiresAt=100, revokedAt=400)
    store(scripts, hash_of(3), expiresAt=200)

    # When a key is created and only some of them are kept
    create(scripts, hash_of(4), ended=ended)

    # Then the new one is there, and those that ended last
    assert sorted(stored(scripts)) == sorted([*[hash_of(1), hash_of(3), hash_of(2)][:ended], hash_of(4)])


def test_a_key_of_another_type_fails_and_stays(scripts: Scripts) -> None:
    scripts.redis.set(f"{scripts.prefix}:keys", "something else")
    with pytest.raises(Exception, match="WRONGTYPE"):
        create(scripts)
    assert scripts.redis.get(f"{scripts.prefix}:keys") == "something else"
