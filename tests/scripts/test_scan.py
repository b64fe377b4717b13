"""scan.lua: the index in pages, for a snapshot."""

from __future__ import annotations

from ..support.scripts import Scripts


def test_every_member_is_returned(scripts: Scripts) -> None:
    names = {f"ci-{number}" for number in range(500)} | {'"\\/\né'}
    scripts.redis.zadd(scripts.index, dict.fromkeys(names, 5))

    found: set[str] = set()
    cursor = "0"
    pages = 0
    while True:
        reply = scripts.run("scan", [scripts.index], [cursor, 100])
        found.update(reply["members"])
        pages += 1
        cursor = reply["cursor"]
        if cursor == "0":
            break

    assert found == names
    assert pages > 1


def test_an_empty_index(scripts: Scripts) -> None:
    assert scripts.run("scan", [scripts.index], ["0", 100]) == {"cursor": "0", "members": []}
