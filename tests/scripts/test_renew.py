"""renew.lua: a lease is prolonged, if its view keeps up."""

from __future__ import annotations

import pytest
import redis

from ..support.leases import OTHER_EPOCH, OTHER_PRIMARY, Leases
from ..support.redis_server import RedisServer
from ..support.scripts import LEASE_MS, Scripts


def given(scripts: Scripts, leases: Leases) -> None:
    """An environment at revision 2, and a lease that was taken there."""
    scripts.put("ci-42", op="g1")
    scripts.put("ci-43", op="g2")
    leases.join("l1", 2, "g2")
    leases.announced()


def test_prolongs_acknowledges_and_returns_the_head(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    scripts.put("ci-44", op="g3")
    leases.age("l1", 500)

    reply = leases.renew("l1", 3, "g3")

    assert reply == {
        "status": "ok",
        "now": reply["now"],
        "rev": 3,
        "id": "g3",
        "epoch": leases.epoch(),
        "leaseMs": LEASE_MS,
    }
    assert leases.expiry("l1") == reply["now"] + LEASE_MS
    assert leases.acked("l1") == 3
    assert (leases.view_fields("l1")["l1:head"], leases.view_fields("l1")["l1:applied"]) == ("3", "3")
    assert leases.announced() == [{"rev": 3, "live": 1, "expired": 0, "epoch": leases.epoch()}]


def test_a_view_that_is_behind_may_go_on_once(scripts: Scripts, leases: Leases) -> None:
    # Given a view whose subscription is dead
    given(scripts, leases)
    scripts.put("ci-44", op="g3")

    # Then its next renewal does, and tells it the head
    assert leases.renew("l1", 2, "g2")["status"] == "ok"
    assert (leases.acked("l1"), leases.view_fields("l1")["l1:head"]) == (2, "3")
    expiry = leases.expiry("l1")

    # And the one after that does not
    reply = leases.renew("l1", 2, "g2")
    assert (reply["status"], reply["leaseMs"], reply["rev"]) == ("refused", 0, 3)
    assert leases.expiry("l1") == expiry
    assert leases.announced() == []


def test_a_view_that_joined_behind_the_head_must_have_reached_it(scripts: Scripts, leases: Leases) -> None:
    scripts.put("ci-42", op="g1")
    leases.join("l1", 0, "")

    assert leases.renew("l1", 0, "")["status"] == "refused"


@pytest.mark.parametrize("late", [0, 700, 766])
def test_a_renewal_in_time_is_given_a_whole_lease(scripts: Scripts, leases: Leases, late: int) -> None:
    # So long that what the test itself takes does not count: two seconds are left of what is in time
    lease = 6_000_000
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1", lease=lease)
    scripts.put("ci-43", op="g2")
    leases.age("l1", late * lease // 2000)

    assert leases.renew("l1", 1, "g1", lease=lease)["leaseMs"] == lease


def test_a_view_that_is_behind_and_late_is_not_given_what_it_is_late(scripts: Scripts, leases: Leases) -> None:
    # Given a view that is behind, and half a lease after it should have been renewed
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1", lease=60_000)
    scripts.put("ci-43", op="g2")
    leases.age("l1", 23_000 + 30_000)

    reply = leases.renew("l1", 1, "g1", lease=60_000)

    # Then a writer that committed before waits for a lease and a third, and a twentieth, at most
    assert 25_000 < reply["leaseMs"] <= 30_000
    assert leases.expiry("l1") == reply["now"] + reply["leaseMs"]


def test_a_view_that_is_late_and_not_behind_is_given_a_whole_lease(scripts: Scripts, leases: Leases) -> None:
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1", lease=60_000)
    leases.age("l1", 50_000)

    assert leases.renew("l1", 1, "g1", lease=60_000)["leaseMs"] == 60_000


@pytest.mark.parametrize(("rev", "write_id"), [(3, "g3"), (2, "x")])
def test_a_view_on_another_chain_is_told(scripts: Scripts, leases: Leases, rev: int, write_id: str) -> None:
    given(scripts, leases)
    before = leases.expiry("l1")

    reply = leases.renew("l1", rev, write_id)

    assert (reply["status"], reply["rev"], reply["id"], reply["leaseMs"]) == ("forked", 2, "g2", 0)
    assert (leases.expiry("l1"), leases.acked("l1")) == (before, 2)


def test_a_lease_that_has_run_out_is_dropped_and_counted(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    scripts.put("ci-44", op="g3")
    leases.run_out("l1")

    reply = leases.renew("l1", 3, "g3")

    assert (reply["status"], reply["leaseMs"]) == ("expired", 0)
    assert (leases.expiry("l1"), leases.acked("l1"), leases.view_fields("l1")) == (None, None, {})
    assert leases.announced() == [{"rev": 3, "live": 0, "expired": 1, "epoch": leases.epoch()}]


def test_a_lease_that_never_was_is_not_made(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)

    assert leases.renew("l2", 2, "g2")["status"] == "expired"
    assert (leases.expiry("l2"), leases.acked("l2"), leases.view_fields("l2")) == (None, None, {})


def restart(scripts: Scripts, leases: Leases) -> None:
    """Have the head and a lease belong to another primary."""
    if leases.server_run() == "-":
        pytest.skip("fakeredis never restarts")
    scripts.redis.hset(scripts.head, mapping=OTHER_PRIMARY)
    scripts.redis.hset(scripts.views, "l1:epoch", OTHER_EPOCH)


def test_a_lease_of_another_primary_is_not_prolonged(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    leases.join("l1", 1, "g1")
    restart(scripts, leases)
    expiry = leases.expiry("l1")

    assert leases.renew("l1", 2, "g2")["status"] == "expired"
    # Then writers wait for it until it has run out, and for leases that may be missing
    assert leases.expiry("l1") == expiry
    assert 0 < scripts.put("ci-44")["countableInMs"] <= LEASE_MS


def test_an_idle_view_too_is_not_given_time_by_another_clock(scripts: Scripts, leases: Leases) -> None:
    # Given a view that has acknowledged the head, under another primary
    given(scripts, leases)
    restart(scripts, leases)
    expiry = leases.expiry("l1")

    # When it renews, then the head names this primary, which tells the former one if the slot goes back
    assert leases.renew_idle("l1", 2, "g2")["status"] == "expired"
    assert leases.expiry("l1") == expiry
    assert leases.epoch() == f"{leases.server_run()}:l1"
    assert leases.replid() == leases.replication_id()
    assert 0 < scripts.put("ci-44", op="g3")["countableInMs"] <= LEASE_MS


@pytest.mark.parametrize(("rev", "write_id"), [(1, "g1"), (2, "x")])
def test_a_view_that_is_not_at_the_head_is_not_idle(scripts: Scripts, leases: Leases, rev: int, write_id: str) -> None:
    given(scripts, leases)

    assert leases.renew_idle("l1", rev, write_id)["status"] == ("refused" if rev == 1 else "forked")


def test_what_a_view_has_applied_never_goes_back(scripts: Scripts, leases: Leases) -> None:
    # Given a view that has reported revision 2, and a change
    given(scripts, leases)
    scripts.put("ci-44", op="g3")

    # When an earlier acknowledgement and an earlier renewal run late
    leases.ack("l1", 1, "g1")
    assert leases.view_fields("l1")["l1:applied"] == "2"
    leases.renew("l1", 3, "g3")
    leases.ack("l1", 2, "g2")

    assert leases.view_fields("l1")["l1:applied"] == "3"


def test_an_idle_view_behind_the_head_of_its_join_acknowledges_it(scripts: Scripts, leases: Leases) -> None:
    scripts.put("ci-42", op="g1")
    leases.join("l1", 0, "")

    assert leases.renew("l1", 1, "g1")["status"] == "ok"
    assert leases.view_fields("l1")["l1:applied"] == "1"


def test_an_idle_view_of_an_earlier_epoch_joins_again(scripts: Scripts, leases: Leases) -> None:
    # Given a lease that was taken before the head was lost and made anew, at the same write
    given(scripts, leases)
    epoch = leases.epoch()
    scripts.redis.hset(scripts.head, "epoch", f"{leases.server_run()}:l9")
    expiry = leases.expiry("l1")

    assert leases.renew("l1", 2, "g2", epoch)["status"] == "expired"
    assert leases.expiry("l1") == expiry


def test_an_idle_view_keeps_a_lease_that_has_run_out_but_was_not_missed(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    leases.run_out("l1")

    reply = leases.renew_idle("l1", 2, "g2")

    assert reply == {"status": "same", "now": reply["now"], "leaseMs": LEASE_MS}
    assert leases.expiry("l1") == reply["now"] + LEASE_MS
    assert scripts.put("ci-44")["pending"] == 1


def test_an_idle_view_whose_lease_was_missed_joins_again(scripts: Scripts, leases: Leases) -> None:
    # Given a writer that no longer waits for the lease
    given(scripts, leases)
    leases.run_out("l1")
    assert leases.lease_status(2)["live"] == 0

    assert leases.renew_idle("l1", 2, "g2")["status"] == "expired"
    assert leases.expiry("l1") is None


def test_an_idle_view_names_the_replication_that_the_head_lacks(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    scripts.redis.hdel(scripts.head, "replid")

    replication = leases.replication_id()
    assert leases.renew_idle("l1", 2, "g2")["status"] == ("same" if replication is None else "ok")
    assert leases.replid() == replication


def test_where_everything_was_flushed(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    scripts.redis.delete(scripts.head, scripts.leases, scripts.acks, scripts.views)

    reply = leases.renew("l1", 2, "g2")

    assert (reply["status"], reply["rev"]) == ("expired", 0)
    assert 0 < scripts.put("ci-44")["countableInMs"] <= LEASE_MS


def test_views_stay_fresh_while_redis_is_out_of_memory(own_redis: RedisServer, prefix: str) -> None:
    with own_redis.client(decode_responses=True) as client:
        scripts = Scripts(client, prefix)
        leases = Leases(scripts)
        given(scripts, leases)
        leases.join("l2", 1, "g1")
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            scripts.put("ci-44")

        assert leases.renew("l1", 2, "g2")["status"] == "ok"
        assert leases.renew_idle("l1", 2, "g2")["status"] == "ok"
        assert leases.ack("l2", 2, "g2")["status"] == "ok"
        assert leases.join("l3", 2, "g2")["status"] == "ok"
        assert leases.leave("l3")["status"] == "ok"
        leases.close()
        scripts.close()


def test_the_floor_rises_with_the_slowest(scripts: Scripts, leases: Leases) -> None:
    given(scripts, leases)
    leases.join("l2", 2, "g2")
    scripts.put("ci-44", op="g3")

    leases.renew("l1", 3, "g3")
    assert leases.announced() == []
    leases.renew("l2", 3, "g3")
    assert leases.announced() == [{"rev": 3, "live": 2, "expired": 0, "epoch": leases.epoch()}]
