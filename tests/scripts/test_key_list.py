"""key_list.lua: read every API key's record."""

from __future__ import annotations

from ..support.scripts import Scripts
from .test_key_create import create, hash_of, store, stored


def test_answers_with_nothing_where_there_is_nothing(scripts: Scripts) -> None:
    reply = scripts.run("key_list", [f"{scripts.prefix}:keys"], [""])
    assert reply == {"now": reply["now"], "keys": {}, "corrupt": []}


def test_answers_with_every_record_by_hash(scripts: Scripts) -> None:
    # Given an active key and one that has ended
    create(scripts, hash_of(1), 'quoted "name"', "checkout")
    store(scripts, hash_of(2), revokedAt=5)

    # When they are listed, then the records are as they are stored, and nothing changes
    before = scripts.everything()
    reply = scripts.run("key_list", [f"{scripts.prefix}:keys"], [""])
    assert reply["keys"] == stored(scripts)
    assert set(reply["keys"]) == {hash_of(1), hash_of(2)}
    assert scripts.everything() == before
