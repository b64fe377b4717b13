"""leave.lua: a lease is given up."""

from __future__ import annotations

import pytest

from ..support.leases import OTHER_PRIMARY, Leases
from ..support.scripts import Scripts


def test_writers_go_on_without_it(scripts: Scripts, leases: Leases) -> None:
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1")
    scripts.put("ci-43", op="g2")

    reply = leases.leave("l1")

    assert reply == {"status": "ok", "now": reply["now"], "rev": 2, "id": "g2", "epoch": leases.epoch(), "leaseMs": 0}
    assert (leases.expiry("l1"), leases.acked("l1"), leases.view_fields("l1")) == (None, None, {})
    assert leases.lease_status(2)["live"] == 0
    assert leases.announced() == [{"rev": 2, "live": 0, "expired": 0, "epoch": leases.epoch()}]


def test_the_others_are_still_waited_for(scripts: Scripts, leases: Leases) -> None:
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1")
    leases.join("l2", 1, "g1")
    scripts.put("ci-43", op="g2")

    leases.leave("l1")

    assert leases.expiry("l2") is not None
    assert leases.lease_status(2)["pending"] == 1
    assert leases.announced() == []


def test_twice_changes_nothing_and_takes_no_other_lease(scripts: Scripts, leases: Leases) -> None:
    leases.join("l1")
    leases.leave("l1")
    leases.join("l2")
    before = scripts.everything()

    assert leases.leave("l1")["status"] == "ok"
    assert scripts.everything() == before


def test_where_there_is_nothing(scripts: Scripts, leases: Leases) -> None:
    reply = leases.leave("l1")

    assert (reply["status"], reply["rev"], reply["id"], reply["epoch"]) == ("ok", 0, "", "")
    assert scripts.everything() == {}


def test_its_own_lease_does_not_count_as_run_out(scripts: Scripts, leases: Leases) -> None:
    leases.join("l1")
    leases.run_out("l1")

    leases.leave("l1")

    assert leases.lease_status(0)["expired"] == 0


def test_other_leases_that_have_run_out_are_dropped_and_counted(scripts: Scripts, leases: Leases) -> None:
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1")
    leases.join("dead", 1, "g1")
    scripts.put("ci-43", op="g2")
    leases.run_out("dead")

    leases.leave("l1")

    assert leases.announced() == [{"rev": 2, "live": 0, "expired": 1, "epoch": leases.epoch()}]


def test_the_leases_of_another_primary_are_not_dropped_by_this_clock(scripts: Scripts, leases: Leases) -> None:
    if leases.server_run() == "-":
        pytest.skip("fakeredis never restarts")
    # Given a slot that came from another primary, by whose clock the other lease lasts
    leases.join("l1")
    leases.join("l2")
    scripts.redis.hset(scripts.head, mapping=OTHER_PRIMARY)
    leases.run_out("l2")

    leases.leave("l1")

    assert leases.expiry("l1") is None
    assert leases.expiry("l2") is not None
