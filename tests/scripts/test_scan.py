"""scan.lua: the index in pages, in no order."""

from __future__ import annotations

from typing import Any

from ..support.scripts import Scripts


def scan(scripts: Scripts, cursor: str, count: int = 100, prefix: str = "") -> Any:
    return scripts.run("scan", [scripts.index, scripts.environments], [cursor, count, prefix, "staging"])


def find(scripts: Scripts, prefix: str = "") -> tuple[set[str], int]:
    """All members, and the number of pages."""
    found: set[str] = set()
    cursor, pages = "0", 0
    while True:
        reply = scan(scripts, cursor, prefix=prefix)
        found.update(reply["members"])
        pages += 1
        cursor = reply["cursor"]
        if cursor == "0":
            return found, pages


def test_every_member_is_returned(scripts: Scripts) -> None:
    names = {f"ci-{number}" for number in range(500)} | {'"\\/\né'}
    scripts.redis.zadd(scripts.index, dict.fromkeys(names, 5))

    found, pages = find(scripts)

    assert found == names
    assert pages > 1


def test_an_empty_index(scripts: Scripts) -> None:
    assert scan(scripts, "0") == {"cursor": "0", "members": [], "known": True}


def test_a_prefix_is_compared_byte_by_byte(scripts: Scripts) -> None:
    names = {f"ci-{number}" for number in range(300)} | {"ci*", "CI-1", "ci-é", "xci-1"}
    scripts.redis.zadd(scripts.index, dict.fromkeys(names, 5))

    for prefix in ("ci-", "ci-1", "ci*", "ci?", "ci-é", "x"):
        assert find(scripts, prefix)[0] == {name for name in names if name.startswith(prefix)}


def test_tells_whether_the_environment_may_be_used(scripts: Scripts) -> None:
    scripts.redis.sadd(scripts.environments, "production")
    assert scan(scripts, "0")["known"] is False

    scripts.redis.sadd(scripts.environments, "staging")
    assert scan(scripts, "0")["known"] is True
