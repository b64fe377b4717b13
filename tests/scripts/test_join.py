"""join.lua: a view takes a lease."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.leases import OTHER_PRIMARY, Leases
from ..support.polling import await_true
from ..support.redis_server import RedisServer
from ..support.scripts import DAY_MS, LEASE_MS, Scripts


def given(scripts: Scripts) -> None:
    """An environment at revision 2, made by the write g2."""
    scripts.put("ci-42", op="g1")
    scripts.put("ci-43", op="g2")


def test_takes_a_lease_and_returns_the_head(scripts: Scripts, leases: Leases) -> None:
    given(scripts)

    reply = leases.join("l1", 2, "g2", info='{"pid":7}')

    assert reply == {
        "status": "ok",
        "now": reply["now"],
        "rev": 2,
        "id": "g2",
        "epoch": leases.epoch(),
        "leaseMs": LEASE_MS,
    }
    assert leases.expiry("l1") == reply["now"] + LEASE_MS
    assert leases.acked("l1") == 2
    assert leases.view_fields("l1") == {
        "l1": '{"pid":7}',
        "l1:head": "2",
        "l1:applied": "2",
        "l1:epoch": leases.epoch(),
    }
    assert scripts.put("ci-44")["pending"] == 1


def test_the_first_lease_begins_an_epoch(scripts: Scripts, leases: Leases) -> None:
    scripts.put(op="a1")
    assert "epoch" not in scripts.messages()[0]

    epoch = leases.join("l1", 1, "a1")["epoch"]
    assert leases.join("l2", 1, "a1")["epoch"] == epoch

    assert epoch == leases.epoch() == f"{leases.server_run()}:l1"
    assert scripts.put()["epoch"] == epoch
    scripts.delete("ci-42")
    assert [message["epoch"] for message in scripts.messages()] == [epoch]


def test_a_flush_ends_the_epoch(scripts: Scripts, leases: Leases) -> None:
    leases.join("l1")
    scripts.redis.delete(scripts.head, scripts.leases, scripts.acks, scripts.views)

    assert leases.join("l2")["epoch"] == f"{leases.server_run()}:l2"


def test_writers_do_not_wait_for_it_to_reach_the_head(scripts: Scripts, leases: Leases) -> None:
    # When a view joins that has yet to apply revision 2
    given(scripts)
    leases.join("l1", 1, "g1")

    # Then it is not waited for: it does not call itself fresh before that
    assert leases.acked("l1") == 2
    assert leases.lease_status(2)["pending"] == 0
    assert leases.lease_status(3)["pending"] == 1
    assert leases.view_fields("l1")["l1:applied"] == "1"


def test_makes_the_head_of_a_new_environment(scripts: Scripts, leases: Leases) -> None:
    reply = leases.join("l1")

    assert (reply["status"], reply["rev"], reply["id"]) == ("ok", 0, "")
    assert leases.replid() == leases.replication_id()
    scripts.redis.hdel(scripts.head, "replid")
    assert scripts.redis.hgetall(scripts.head) == {
        "rev": "0",
        "layout": "2",
        "countableAt": "0",
        "epoch": leases.epoch(),
        "keptUntil": str(reply["now"] + 2 * DAY_MS),
    }
    # Then the first write follows on what the view has
    assert scripts.put(op="a1")["countableInMs"] == 0
    [message] = scripts.messages()
    assert (message["rev"], message["prev"]) == (1, "")


def test_a_missing_head_with_others_that_listen_was_lost(scripts: Scripts, leases: Leases) -> None:
    scripts.stop_listening()
    with scripts.redis.pubsub() as own, scripts.redis.pubsub() as other:
        for pubsub in (own, other):
            pubsub.ssubscribe(scripts.changes)
            assert pubsub.get_sharded_message(timeout=10)["type"] == "ssubscribe"

        reply = leases.join("l1")

        assert scripts.redis.hget(scripts.head, "countableAt") == str(reply["now"] + LEASE_MS)
        assert 0 < scripts.put()["countableInMs"] <= LEASE_MS


def test_a_missing_head_with_nobody_else_that_listens_was_never_there(scripts: Scripts, leases: Leases) -> None:
    scripts.stop_listening()
    with scripts.redis.pubsub() as own:
        own.ssubscribe(scripts.changes)
        assert own.get_sharded_message(timeout=10)["type"] == "ssubscribe"

        leases.join("l1")

        assert scripts.put()["countableInMs"] == 0


def test_a_view_that_is_ahead_of_the_head_gets_no_lease(scripts: Scripts, leases: Leases) -> None:
    given(scripts)

    reply = leases.join("l1", 3, "g3")

    assert reply == {
        "status": "forked",
        "now": reply["now"],
        "rev": 2,
        "id": "g2",
        "epoch": leases.epoch(),
        "leaseMs": 0,
    }
    assert (leases.expiry("l1"), leases.acked("l1"), leases.view_fields("l1")) == (None, None, {})
    # And writers wait, since leases were lost with what it has seen
    assert 0 < scripts.put("ci-44")["countableInMs"] <= LEASE_MS


def test_a_view_that_has_another_revision_of_that_number_gets_no_lease(scripts: Scripts, leases: Leases) -> None:
    given(scripts)

    assert leases.join("l1", 2, "x")["status"] == "forked"
    assert leases.expiry("l1") is None


def test_leases_that_have_run_out_are_dropped_counted_and_announced(scripts: Scripts, leases: Leases) -> None:
    given(scripts)
    leases.join("dead", 2, "g2")
    scripts.put("ci-44", op="g3")
    leases.run_out("dead")
    assert leases.announced() == []

    leases.join("l1", 3, "g3")

    assert leases.expiry("dead") is None
    assert leases.announced() == [{"rev": 3, "live": 1, "expired": 1, "epoch": leases.epoch()}]


def test_another_run_of_the_server_lets_writers_wait(scripts: Scripts, leases: Leases) -> None:
    if leases.server_run() == "-":
        pytest.skip("fakeredis never restarts")
    given(scripts)
    scripts.redis.hset(scripts.head, mapping=OTHER_PRIMARY)

    reply = leases.join("l1", 2, "g2")

    assert reply["status"] == "ok"
    assert leases.epoch() == f"{leases.server_run()}:l1" == leases.view_fields("l1")["l1:epoch"]
    assert leases.replid() == leases.replication_id()
    assert scripts.redis.hget(scripts.head, "countableAt") == str(reply["now"] + LEASE_MS)


def test_only_another_primary_begins_another_reign(own_redis: RedisServer, prefix: str) -> None:
    with own_redis.client(decode_responses=True) as client:
        scripts = Scripts(client, prefix)
        leases = Leases(scripts)
        leases.join("l1", 0, "")
        epoch, replication_id = leases.epoch(), leases.replication_id()

        # Given a first replica, with which Redis changes the id of its replication
        with RedisServer(replicaof=f"127.0.0.1 {own_redis.port}"):
            await_true(lambda: leases.replication_id() != replication_id, "the replica has connected")

            # When a session is written, then no lease counts as lost
            assert scripts.put()["countableInMs"] == 0
            assert leases.epoch() == epoch
            assert leases.replid() == leases.replication_id()

        # But when the primary was a replica in between, then writers wait for a lease
        client.replicaof("127.0.0.1", 1)
        client.replicaof("NO", "ONE")
        assert 0 < scripts.put("ci-43")["countableInMs"] <= LEASE_MS
        assert leases.epoch() == f"{leases.server_run()}:l1" != epoch
        leases.close()
        scripts.close()


@pytest.mark.parametrize("options", [{"appendonly": "yes", "appendfsync": "always"}, {"save": "3600 1"}])
def test_a_restart_begins_another_reign(prefix: str, options: dict[str, Any]) -> None:
    with RedisServer(**options) as server, server.client(decode_responses=True) as client:
        scripts = Scripts(client, prefix)
        leases = Leases(scripts)
        leases.join("l1", 0, "")
        replid = leases.replid()
        leases.close()
        scripts.close()

        server.stop()
        server.start()

        # Then the data is there, and the leases don't count
        assert leases.replid() == replid != leases.replication_id()
        assert 0 < scripts.put()["countableInMs"] <= LEASE_MS
        assert leases.replid() == leases.replication_id()


def test_a_writable_replica_is_another_primary(own_redis: RedisServer, prefix: str) -> None:
    replica = RedisServer(replicaof=f"127.0.0.1 {own_redis.port}", replica_read_only="no")
    with own_redis.client(decode_responses=True) as client, replica, replica.client(decode_responses=True) as other:
        await_true(lambda: other.info("replication")["master_link_status"] == "up", "the replica has connected")
        scripts, there = Scripts(client, prefix), Scripts(other, prefix)
        leases, leases_there = Leases(scripts), Leases(there)
        leases.join("l1", 0, "")
        await_true(lambda: there.redis.exists(there.head) == 1, "the replica has the head")

        # When a session is written there, with the same id of its replication
        assert leases_there.replid() == leases_there.replication_id()
        assert 0 < there.put()["countableInMs"] <= LEASE_MS
        for item in (leases, leases_there, scripts, there):
            item.close()
