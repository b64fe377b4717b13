"""key_revoke.lua: revoke an API key for good."""

from __future__ import annotations

from typing import Any

from ..support.scripts import Scripts
from .test_key_create import create, hash_of, store, stored


def revoke(scripts: Scripts, key_id: str) -> dict[str, Any]:
    return scripts.run("key_revoke", [f"{scripts.prefix}:keys"], [key_id])


def test_notes_when_the_key_was_revoked_and_touches_no_other(scripts: Scripts) -> None:
    # Given two keys
    first = create(scripts, hash_of(1), "first", "checkout", scripts.now() + 60_000)["key"]
    second = create(scripts, hash_of(2), "second")["key"]

    # When one is revoked
    reply = revoke(scripts, "000000000001")

    # Then its record says when, and everything else is as it was
    revoked = {**first, "revokedAt": reply["now"]}
    assert reply == {"status": "ok", "now": reply["now"], "key": revoked}
    assert stored(scripts) == {hash_of(1): revoked, hash_of(2): second}


def test_revoking_again_changes_nothing(scripts: Scripts) -> None:
    store(scripts, hash_of(1), revokedAt=5)
    before = scripts.everything()
    assert revoke(scripts, "000000000001")["key"]["revokedAt"] == 5
    assert scripts.everything() == before


def test_an_expired_key_can_be_revoked(scripts: Scripts) -> None:
    store(scripts, hash_of(1), expiresAt=5, lastUsedAt=4)
    record = revoke(scripts, "000000000001")["key"]
    assert (record["expiresAt"], record["lastUsedAt"]) == (5, 4)
    assert record["revokedAt"] is not None


def test_an_unknown_id_is_not_found(scripts: Scripts) -> None:
    create(scripts, hash_of(1))
    before = scripts.everything()
    assert revoke(scripts, "000000000002") == {"status": "key_not_found", "detail": "000000000002"}
    # An id is all of its digits.
    assert revoke(scripts, "00000000000")["status"] == "key_not_found"
    assert scripts.everything() == before
