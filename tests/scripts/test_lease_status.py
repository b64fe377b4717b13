"""standing.lua: which leases have not applied a revision yet."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.leases import OTHER_EPOCH, Leases
from ..support.scripts import LEASE_MS, Scripts


def lease_status(scripts: Scripts, rev: int) -> dict[str, Any]:
    keys = [scripts.head, scripts.leases, scripts.acks, scripts.views, scripts.changes]
    return scripts.run("lease_status", keys, [rev, LEASE_MS])


def test_with_no_lease(scripts: Scripts) -> None:
    scripts.stop_listening()
    reply = lease_status(scripts, 0)

    assert reply == {
        "now": reply["now"],
        "rev": 0,
        "live": 0,
        "pending": 0,
        "expired": 0,
        "leaseLeftMs": 0,
        "countableInMs": 0,
        "epoch": "",
    }
    assert scripts.everything() == {}


def test_counts_those_that_have_not_applied_the_revision(scripts: Scripts) -> None:
    now = scripts.now()
    scripts.redis.hset(
        scripts.head, mapping={"rev": 7, "layout": 2, "id": "a", "expiredLeases": 2, "countableAt": now + 60_000}
    )
    scripts.redis.zadd(scripts.leases, {"l1": now + 30_000, "l2": now + 60_000, "l3": now + 10_000})
    scripts.redis.zadd(scripts.acks, {"l1": 6, "l2": 7, "l3": 8})

    reply = lease_status(scripts, 7)

    assert (reply["rev"], reply["live"], reply["pending"], reply["expired"]) == (7, 3, 1, 2)
    assert 0 < reply["countableInMs"] <= 60_000


def test_tells_when_the_last_of_those_runs_out(scripts: Scripts) -> None:
    now = scripts.now()
    scripts.redis.hset(scripts.head, mapping={"rev": 7, "layout": 2, "id": "a"})
    scripts.redis.zadd(scripts.leases, {"behind": now + 30_000, "further": now + 40_000, "current": now + 60_000})
    scripts.redis.zadd(scripts.acks, {"behind": 6, "further": 2, "current": 7})

    assert 30_000 < lease_status(scripts, 7)["leaseLeftMs"] <= 40_000
    assert 0 < lease_status(scripts, 8)["leaseLeftMs"] <= 60_000
    assert lease_status(scripts, 2)["leaseLeftMs"] == 0


def test_leases_that_have_run_out_are_dropped_and_counted(scripts: Scripts) -> None:
    now = scripts.now()
    scripts.redis.hset(scripts.head, mapping={"rev": 2, "layout": 2, "id": "a"})
    scripts.redis.zadd(scripts.leases, {"dead": now, "deader": 5, "live": now + 60_000})
    scripts.redis.zadd(scripts.acks, {"dead": 1, "deader": 9, "live": 1})
    fields = {
        "dead": "{}",
        "dead:head": 1,
        "dead:applied": 1,
        "dead:epoch": "-:a",
        "deader": "{}",
        "live": "{}",
        "live:head": 1,
    }
    scripts.redis.hset(scripts.views, mapping=fields)

    reply = lease_status(scripts, 2)

    assert (reply["live"], reply["pending"], reply["expired"]) == (1, 1, 2)
    assert scripts.redis.zrange(scripts.leases, 0, -1) == ["live"]
    assert scripts.redis.zrange(scripts.acks, 0, -1) == ["live"]
    assert scripts.redis.hgetall(scripts.views) == {"live": "{}", "live:head": "1"}
    assert scripts.redis.hget(scripts.head, "expiredLeases") == "2"


def test_a_head_that_was_lost_is_kept_as_such(scripts: Scripts) -> None:
    # When a writer that waits for revision 2 finds nothing
    reply = lease_status(scripts, 2)

    # Then it reports that, and the next writer waits for a whole lease
    assert (reply["rev"], reply["countableInMs"]) == (0, LEASE_MS)
    assert 0 < scripts.put()["countableInMs"] <= LEASE_MS


def test_another_run_of_the_server_is_told_and_kept(scripts: Scripts, leases: Leases) -> None:
    if leases.server_run() == "-":
        pytest.skip("fakeredis never restarts")
    scripts.redis.hset(scripts.head, mapping={"rev": 2, "layout": 2, "id": "a", "epoch": OTHER_EPOCH})

    reply = lease_status(scripts, 2)

    assert reply["epoch"] == f"{leases.server_run()}:l1"
    assert reply["countableInMs"] == LEASE_MS
    assert scripts.redis.hget(scripts.head, "epoch") == reply["epoch"]
    # Then it is found out once
    assert lease_status(scripts, 2)["countableInMs"] <= LEASE_MS
    assert scripts.redis.hget(scripts.head, "countableAt") == str(reply["now"] + LEASE_MS)
