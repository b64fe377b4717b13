"""standing.lua: which leases have not applied a revision yet."""

from __future__ import annotations

from typing import Any

from .harness import Scripts


def standing(scripts: Scripts, rev: int) -> dict[str, Any]:
    return scripts.run("standing", [scripts.head, scripts.leases, scripts.acks, scripts.views], [rev])


def test_with_no_lease(scripts: Scripts) -> None:
    reply = standing(scripts, 1)

    assert reply == {"now": reply["now"], "rev": 0, "live": 0, "pending": 0, "expired": 0, "left": 0, "settle": 0}


def test_counts_those_that_have_not_applied_the_revision(scripts: Scripts) -> None:
    now = scripts.now()
    scripts.redis.hset(scripts.head, mapping={"rev": 7, "id": "a", "expired": 2, "settle": now + 60_000})
    scripts.redis.zadd(scripts.leases, {"l1": now + 30_000, "l2": now + 60_000, "l3": now + 10_000})
    scripts.redis.zadd(scripts.acks, {"l1": 6, "l2": 7, "l3": 8})

    reply = standing(scripts, 7)

    assert (reply["rev"], reply["live"], reply["pending"], reply["expired"]) == (7, 3, 1, 2)
    assert 0 < reply["left"] <= 60_000
    assert 0 < reply["settle"] <= 60_000


def test_leases_that_have_run_out_are_dropped_and_counted(scripts: Scripts) -> None:
    now = scripts.now()
    scripts.redis.zadd(scripts.leases, {"dead": now, "deader": 5, "live": now + 60_000})
    scripts.redis.zadd(scripts.acks, {"dead": 1, "deader": 9, "live": 1})
    scripts.redis.hset(
        scripts.views, mapping={"dead": "{}", "dead:head": 1, "deader": "{}", "live": "{}", "live:head": 1}
    )

    reply = standing(scripts, 2)

    assert (reply["live"], reply["pending"], reply["expired"]) == (1, 1, 2)
    assert scripts.redis.zrange(scripts.leases, 0, -1) == ["live"]
    assert scripts.redis.zrange(scripts.acks, 0, -1) == ["live"]
    assert scripts.redis.hgetall(scripts.views) == {"live": "{}", "live:head": "1"}
    assert scripts.redis.hget(scripts.head, "expired") == "2"
