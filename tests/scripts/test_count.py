"""count.lua: the number of live sessions and views, for metrics."""

from __future__ import annotations

import pytest
import redis

from ..support.scripts import Scripts


def count(scripts: Scripts, *bases: str, what: str = "sessions") -> list[int]:
    keys = [f"{base}:{part}" for base in bases for part in ("index", "head", "leases")]
    reply = scripts.run("count", keys, [])
    assert reply["now"] > 0
    counts: list[int] = reply[what]
    return counts


def test_counts_each_environment_in_the_order_of_keys(scripts: Scripts) -> None:
    # Given an environment with two sessions, and an unused one
    scripts.put("ci-1")
    scripts.put("ci-2")
    other = f"{scripts.prefix}:{{checkout}}:qa"

    assert count(scripts, scripts.base, other) == [2, 0]
    assert count(scripts, other, scripts.base) == [0, 2]
    assert count(scripts) == []


def test_leaves_out_those_not_seen_for_the_longest_ttl(scripts: Scripts) -> None:
    # Given an index that still names a deleted session, and a session that is about to expire
    scripts.put("live", ttl=60_000)
    now = scripts.now()
    scripts.redis.zadd(scripts.index, {"gone": now - 60_000, "old": now - 30_000})

    assert count(scripts, scripts.base) == [2]


def test_counts_the_leases_that_have_not_expired(scripts: Scripts) -> None:
    # Given three leases, one of which expires in this millisecond
    now = scripts.now()
    scripts.redis.zadd(scripts.leases, {"expired": now, "first": now + 60_000, "second": now + 60_000})

    assert count(scripts, scripts.base, f"{scripts.prefix}:{{checkout}}:qa", what="views") == [2, 0]


def test_changes_nothing(scripts: Scripts) -> None:
    scripts.put("ci-1")
    before = scripts.everything()

    count(scripts, scripts.base)

    assert scripts.everything() == before
    assert scripts.messages()[1:] == []


def test_what_the_library_did_not_write_is_an_error(scripts: Scripts) -> None:
    scripts.put("ci-1")
    scripts.redis.hset(scripts.head, "maxTtl", "soon")

    with pytest.raises(redis.ResponseError, match="SSCORRUPT"):
        count(scripts, scripts.base)
