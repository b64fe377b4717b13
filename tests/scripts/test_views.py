"""views.lua: the views that hold a lease, for people."""

from __future__ import annotations

from ..support.leases import Leases
from ..support.scripts import LEASE_MS, Scripts


def test_without_any(scripts: Scripts, leases: Leases) -> None:
    reply = leases.views()

    assert reply == {"now": reply["now"], "rev": 0, "epoch": "", "views": []}


def test_what_each_says_and_has_applied(scripts: Scripts, leases: Leases) -> None:
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1", info='{"host":"a \\"b\\"","pid":7}')
    leases.join("l2", 0, "", lease=60_000)
    scripts.put("ci-43", op="g2")
    leases.ack("l1", 2, "g2")

    reply = leases.views()

    assert (reply["rev"], reply["epoch"]) == (2, leases.epoch())
    first, second = reply["views"]
    assert first == {
        "lease": "l1",
        "info": '{"host":"a \\"b\\"","pid":7}',
        "applied": 2,
        "leaseLeftMs": first["leaseLeftMs"],
    }
    assert 0 < first["leaseLeftMs"] <= LEASE_MS
    # A view that has yet to reach the head that its join returned is shown where it is
    assert (second["lease"], second["info"], second["applied"]) == ("l2", "{}", 0)


def test_a_view_of_which_nothing_is_known(scripts: Scripts, leases: Leases) -> None:
    scripts.redis.zadd(scripts.leases, {"l1": scripts.now() + 60_000})

    [view] = leases.views()["views"]

    assert (view["lease"], view["info"], view["applied"]) == ("l1", "{}", 0)


def test_a_lease_that_has_run_out_is_not_shown_and_not_touched(scripts: Scripts, leases: Leases) -> None:
    leases.join("l1")
    leases.run_out("l1")
    before = scripts.everything()

    assert leases.views()["views"] == []
    assert scripts.everything() == before
