"""A head of another layout is refused by every script that reads it, before anything is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from sessionstore.protocol.keyspace import LAYOUT

from ..support.leases import Leases
from ..support.scripts import Scripts

OTHERS = [None, str(LAYOUT - 1), str(LAYOUT + 1)]


@pytest.mark.parametrize("layout", OTHERS)
@pytest.mark.parametrize("script", ["put", "snapshot", "head", "join", "lease_status"])
def test_another_layout_is_refused(scripts: Scripts, leases: Leases, script: str, layout: str | None) -> None:
    # Given an environment that another release has written
    scripts.put(op="a1")
    if layout is None:
        scripts.redis.hdel(scripts.head, "layout")
    else:
        scripts.redis.hset(scripts.head, "layout", layout)
    before = {key: scripts.redis.dump(key) for key in scripts.redis.keys(f"{scripts.prefix}:*")}

    # When a script reads its head
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: scripts.put(op="a2"),
        "snapshot": lambda: scripts.run("snapshot", [scripts.head, scripts.index], ["0", 10]),
        "head": lambda: scripts.run("head", [scripts.head], []),
        "join": lambda: leases.join("l1"),
        "lease_status": lambda: leases.lease_status(1),
    }
    with pytest.raises(redis.ResponseError, match=f"SSLAYOUT {layout or 1}\\b"):
        calls[script]()

    # Then nothing was changed
    assert {key: scripts.redis.dump(key) for key in scripts.redis.keys(f"{scripts.prefix}:*")} == before


def test_the_first_write_names_the_layout(scripts: Scripts) -> None:
    scripts.put(op="a1")

    assert scripts.redis.hget(scripts.head, "layout") == str(LAYOUT)


def test_the_first_join_names_the_layout(scripts: Scripts, leases: Leases) -> None:
    leases.join("l1")

    assert scripts.redis.hget(scripts.head, "layout") == str(LAYOUT)
