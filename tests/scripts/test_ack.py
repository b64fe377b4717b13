"""ack.lua: a view says what it has applied, between two renewals."""

from __future__ import annotations

import pytest

from ..support.leases import OTHER_EPOCH, OTHER_PRIMARY, Leases
from ..support.scripts import Scripts


def given(scripts: Scripts, leases: Leases) -> None:
    """Two leases at revision 1, and then a revision 2."""
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1")
    leases.join("l2", 1, "g1")
    scripts.put("ci-43", op="g2")


def test_the_last_to_acknowledge_wakes_the_writers(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    expiry = leases.expiry("l1")

    reply = leases.ack("l1", 2, "g2")

    assert reply == {"status": "ok"}
    assert (leases.acked("l1"), leases.view_fields("l1")["l1:applied"]) == (2, "2")
    assert leases.expiry("l1") == expiry
    assert leases.lease_status(2)["pending"] == 1
    assert leases.announced() == []

    leases.ack("l2", 2, "g2")

    assert leases.lease_status(2)["pending"] == 0
    assert leases.announced() == [{"rev": 2, "live": 2, "expired": 0, "epoch": leases.epoch()}]


def test_while_another_view_is_behind_nothing_else_happens(scripts: Scripts, leases: Leases) -> None:
    # Given that the first lease is behind, and another has expired
    given(scripts, leases)
    leases.join("l3", 2, "g2")
    leases.run_out("l3")
    before = scripts.everything()

    assert leases.ack("l2", 2, "g2") == {"status": "ok"}

    # Then the expired lease stays: only a script that counts leases drops it
    assert (leases.acked("l2"), leases.view_fields("l2")["l2:applied"]) == (2, "2")
    assert set(leases.view_fields("l3"))
    assert leases.announced() == []
    scripts.redis.zadd(scripts.acks, {"l2": 1})
    scripts.redis.hset(scripts.views, "l2:applied", "1")
    assert scripts.everything() == before


def test_never_lowers(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    leases.ack("l1", 2, "g2")

    assert leases.ack("l1", 1, "g1")["status"] == "ok"
    assert leases.acked("l1") == 2


def test_does_not_lower_what_the_join_returned(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    leases.join("l3", 0, "")

    leases.ack("l3", 1, "g1")

    assert (leases.acked("l3"), leases.view_fields("l3")["l3:applied"]) == (2, "1")


@pytest.mark.parametrize(("rev", "write_id"), [(3, "g3"), (2, "x")])
def test_a_view_on_another_chain_is_told(scripts: Scripts, leases: Leases, rev: int, write_id: str) -> None:
    given(scripts, leases)

    assert leases.ack("l1", rev, write_id)["status"] == "forked"
    assert leases.acked("l1") == 1


def test_a_lease_that_has_run_out_but_was_not_missed(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    leases.ack("l2", 2, "g2")
    leases.run_out("l1")

    reply = leases.ack("l1", 2, "g2")

    assert reply == {"status": "ok"}
    assert leases.acked("l1") == 2
    assert leases.announced() == [{"rev": 2, "live": 2, "expired": 0, "epoch": leases.epoch()}]


def test_a_lease_that_was_missed(scripts: Scripts, leases: Leases) -> None:
    # Given a writer that no longer waits for the lease
    given(scripts, leases)
    leases.ack("l2", 2, "g2")
    leases.run_out("l1")
    assert leases.lease_status(2)["pending"] == 0

    assert leases.ack("l1", 2, "g2") == {"status": "expired"}
    assert leases.acked("l1") is None
    assert leases.view_fields("l1") == {}


def test_the_floor_rises_to_the_next_view(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    leases.ack("l2", 2, "g2")
    scripts.put("ci-44", op="g3")
    leases.announced()

    assert leases.ack("l1", 3, "g3") == {"status": "ok"}
    assert leases.announced() == [{"rev": 2, "live": 2, "expired": 0, "epoch": leases.epoch()}]

    scripts.put("ci-45", op="g4")
    leases.join("l3", 4, "g4")
    scripts.redis.zadd(scripts.acks, {"l2": 3})
    assert leases.ack("l1", 4, "g4") == {"status": "ok"}
    assert leases.announced() == []


def test_a_lease_that_never_was_is_not_made(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    before = scripts.everything()

    assert leases.ack("l9", 2, "g2")["status"] == "expired"
    assert scripts.everything() == before


def test_a_lease_of_another_epoch(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    before = scripts.everything()

    assert leases.ack("l1", 2, "g2", OTHER_EPOCH)["status"] == "expired"
    assert scripts.everything() == before
    assert leases.acked("l1") == 1


def test_the_leases_of_another_primary_are_not_dropped_by_this_clock(scripts: Scripts, leases: Leases) -> None:
    if leases.server_run() == "-":
        pytest.skip("fakeredis never restarts")
    # Given a slot that came from another primary, by whose clock the other lease lasts
    given(scripts, leases)
    scripts.redis.hset(scripts.head, mapping=OTHER_PRIMARY)
    leases.run_out("l2")

    leases.ack("l1", 2, "g2", OTHER_EPOCH)

    # Then the next write there still waits for it
    assert leases.expiry("l2") is not None
    assert leases.acked("l2") == 1
