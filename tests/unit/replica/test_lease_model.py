"""The model of the scripts equals the scripts: the same random calls on both, on a real Redis.

The tests move time by moving all expiries back. They simulate a restart by writing another run into the keys.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings, strategies as st

from ...support.lease_model import ServerModel
from ...support.leases import OTHER_EPOCH, OTHER_PRIMARY, Leases
from ...support.redis_server import RedisServer
from ...support.scripts import Scripts

LEASE_MS = 60_000
#: Lease ids of the random calls: leases that exist, have ended, or never existed.
IDS = ["l1", "l2", "l3"]

_prefixes = itertools.count()

#: The distance of a position from the head, and whether its id belongs to another chain.
positions = st.tuples(st.sampled_from([0, 0, 0, -1, -2, 1]), st.integers(0, 9).map(lambda n: n == 0))
calls = st.one_of(
    st.tuples(st.just("write"), st.sampled_from([0, 0, 0, 1, 5])),
    st.tuples(st.just("join"), st.sampled_from(IDS), positions),
    st.tuples(st.just("renew"), st.sampled_from(IDS), positions, st.sampled_from(["known", "", "another"])),
    st.tuples(st.just("ack"), st.sampled_from(IDS), positions, st.integers(0, 9).map(lambda n: n == 0)),
    st.tuples(st.just("leave"), st.sampled_from(IDS)),
    st.tuples(st.just("lease_status"), st.integers(0, 4)),
    st.tuples(st.just("wait"), st.sampled_from([1_000, 21_000, 25_000, 40_000, 61_000])),
    st.tuples(st.just("flush")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("listen"), st.integers(0, 2)),
)


class Both:
    """A real environment and its model."""

    def __init__(self, client: Any) -> None:
        self.scripts = Scripts(client, f"model{next(_prefixes)}")
        self.scripts.stop_listening()
        self.leases = Leases(self.scripts)
        self.model = ServerModel(server_run=self.leases.server_run())
        self.other = client.pubsub()
        self.written: dict[int, str] = {0: ""}
        self.writes = itertools.count(1)

    def close(self) -> None:
        self.other.close()
        self.leases.close()
        self.scripts.close()

    def position(self, offset: int, forked: bool) -> tuple[int, str]:
        rev = max(0, (self.model.rev or 0) + offset)
        return rev, "other" if forked else self.written.get(rev, "unwritten")

    def step(self, name: str, *args: Any) -> None:
        """Run a call on both. Their answers, contents and messages must agree."""
        reply, expected = getattr(self, name)(*args)
        for field, value in msgspec.to_builtins(expected).items() if expected is not None else ():
            if field in ("rev", "id", "epoch") and reply.get("status") == "same":
                assert field not in reply
                continue
            assert field in ("detail", "session", "changed", "existed") or reply[field] == value, (name, field)
        self.compare()

    # The calls. The model's clock is set to the time of the answer.

    def write(self, known: int) -> Any:
        write_id = f"w{next(self.writes)}"
        reply = self.scripts.put("ci-42", "+label", write_id, op=write_id, lease=LEASE_MS, known=known)
        self.model.now = reply["now"]
        expected = self.model.write(write_id, LEASE_MS, known)
        self.written[expected.rev] = write_id
        return reply, expected

    def join(self, lease_id: str, position: tuple[int, bool]) -> Any:
        rev, write_id = self.position(*position)
        reply = self.leases.join(lease_id, rev, write_id, lease=LEASE_MS)
        self.model.now = reply["now"]
        return reply, self.model.join(lease_id, LEASE_MS, rev, write_id)

    def renew(self, lease_id: str, position: tuple[int, bool], epoch: str) -> Any:
        rev, write_id = self.position(*position)
        epoch = self.model.epoch if epoch == "known" else epoch
        reply = self.leases.renew(lease_id, rev, write_id, epoch, lease=LEASE_MS)
        self.model.now = reply["now"]
        return reply, self.model.renew(lease_id, LEASE_MS, rev, write_id, epoch)

    def ack(self, lease_id: str, position: tuple[int, bool], outdated: bool) -> Any:
        rev, write_id = self.position(*position)
        epoch = "another" if outdated else self.model.epoch
        reply = self.leases.ack(lease_id, rev, write_id, epoch)
        self.model.now = self.scripts.now()
        return reply, self.model.ack(lease_id, rev, write_id, epoch)

    def leave(self, lease_id: str) -> Any:
        reply = self.leases.leave(lease_id)
        self.model.now = reply["now"]
        return reply, self.model.leave(lease_id)

    def lease_status(self, rev: int) -> Any:
        reply = self.leases.lease_status(rev, lease=LEASE_MS)
        self.model.now = reply["now"]
        return reply, self.model.lease_status(rev, LEASE_MS)

    # Time and faults

    def wait(self, ms: int) -> Any:
        for lease_id in self.model.leases:
            self.leases.age(lease_id, ms)
            self.model.leases[lease_id] -= ms
        if self.model.countable_at:
            self.scripts.redis.hincrby(self.scripts.head, "countableAt", -ms)
            self.model.countable_at -= ms
        return None, None

    def flush(self) -> Any:
        self.scripts.redis.delete(*self.scripts.redis.keys(f"{self.scripts.prefix}:*") or ["-"])
        self.model.flush()
        return None, None

    def restart(self) -> Any:
        if self.model.epoch:
            self.scripts.redis.hset(self.scripts.head, mapping=OTHER_PRIMARY)
            self.model.epoch = OTHER_EPOCH
        for lease_id, (head, applied, _) in list(self.model.notes.items()):
            self.scripts.redis.hset(self.scripts.views, f"{lease_id}:epoch", OTHER_EPOCH)
            self.model.notes[lease_id] = (head, applied, OTHER_EPOCH)
        return None, None

    def listen(self, count: int) -> Any:
        # The first listener is the test itself, so without listeners no message is compared.
        if count and not self.model.listeners:
            self.scripts.listen()
        elif self.model.listeners and not count:
            self.scripts.stop_listening()
        if count == 2 and self.model.listeners < 2:
            self.other.ssubscribe(self.scripts.changes)
            assert self.other.get_sharded_message(timeout=10)["type"] == "ssubscribe"
        elif count < 2 and self.model.listeners == 2:
            self.other.sunsubscribe()
            while self.other.get_sharded_message(timeout=10)["type"] != "sunsubscribe":
                pass
        self.model.listeners = count
        return None, None

    def compare(self) -> None:
        redis, scripts, model = self.scripts.redis, self.scripts, self.model
        assert dict(redis.zrange(scripts.leases, 0, -1, withscores=True)) == model.leases
        assert dict(redis.zrange(scripts.acks, 0, -1, withscores=True)) == model.acks
        notes: dict[str, str] = {}
        for lease_id, (head, applied, epoch) in model.notes.items():
            notes |= {lease_id: "{}", f"{lease_id}:head": str(head), f"{lease_id}:applied": str(applied)}
            notes |= {f"{lease_id}:epoch": epoch}
        assert redis.hgetall(scripts.views) == notes
        head = redis.hgetall(scripts.head)
        assert (head.get("rev"), head.get("id", "")) == (None if model.rev is None else str(model.rev), model.id)
        assert (int(head.get("expiredLeases", 0)), int(head.get("countableAt", 0))) == (
            model.expired,
            model.countable_at,
        )
        assert (head.get("epoch", ""), int(head.get("lostRev", 0))) == (model.epoch, model.lost)
        announced, model.announced = model.announced, []
        assert self.leases.announced() == json.loads(msgspec.json.encode(announced))
        published, model.published = model.published, []
        if model.listeners:
            changes = [(m["rev"], m["id"], m["prev"], m.get("epoch", "")) for m in scripts.messages()]
            assert changes == published


def test_the_model_does_what_the_scripts_do(shared_redis: RedisServer) -> None:
    with shared_redis.client(decode_responses=True) as client:

        @settings(
            max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(st.lists(calls, min_size=5, max_size=30))
        def compare(sequence: list[tuple[Any, ...]]) -> None:
            both = Both(client)
            try:
                for name, *args in sequence:
                    both.step(name, *args)
            finally:
                both.close()

        compare()
