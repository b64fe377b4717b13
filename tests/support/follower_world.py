"""A follower on a model of Redis, linked in memory. The test runs the calls and moves the time."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from sessionstore.errors import StoreUnavailableError
from sessionstore.protocol.calls import Call, WriteContext
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.replica.follower import Follower, FollowerRequest

from .replica_world import KEYS, Redis

__all__ = ["LEASE_MS", "FollowerWorld", "Server", "script_of"]

LEASE_MS = 2_000
#: Redis's time where local time is 0.
_EPOCH_MS = 1_700_000_000_000

UNAVAILABLE = StoreUnavailableError("Redis can't be reached; nothing was changed, try again later.")


def script_of(request: FollowerRequest) -> str:
    return request.call.script.name


@dataclass
class _Lease:
    expires: int
    #: the head that its last join or renewal returned
    told: int
    acked: int


class Server(Redis):
    """The model of Redis, with leases and touches like those of the scripts."""

    def __init__(self) -> None:
        super().__init__(page_size=100)
        self.leases: dict[str, _Lease] = {}
        #: each touch that ran: session key → when it was seen
        self.touches: list[dict[str, int]] = []
        #: the known revision of each touch
        self.known: list[int] = []

    def run(self, call: Call[Any]) -> Any:
        name = call.script.name
        if name in ("snapshot", "catalog_read"):
            return super().run(call)
        return call.decode(json.dumps(getattr(self, f"_{name}")(*call.args)).encode())

    def _answer(self, status: str, lasts: int = 0) -> dict[str, object]:
        rev, head_id = self.head
        return {"status": status, "now": self.now, "rev": rev, "id": head_id, "leaseMs": lasts, "epoch": ""}

    def _join(self, lease_id: str, lease: int, info: str, rev: int, position_id: str) -> object:
        if self._is_forked(rev, position_id):
            return self._answer("forked")
        self.leases[lease_id] = _Lease(self.now + lease, self.contents.rev, self.contents.rev)
        return self._answer("ok", lease)

    def _renew(self, lease_id: str, lease: int, rev: int, position_id: str, epoch: str) -> object:
        held = self.leases.get(lease_id)
        if held is None or held.expires <= self.now:
            return self._answer("expired")
        if self._is_forked(rev, position_id):
            return self._answer("forked")
        if rev < held.told:
            return self._answer("refused")
        self.leases[lease_id] = _Lease(self.now + lease, self.contents.rev, max(held.acked, rev))
        return self._answer("ok", lease)

    def _ack(self, lease_id: str, rev: int, position_id: str) -> object:
        held = self.leases.get(lease_id)
        if held is None or held.expires <= self.now:
            return self._answer("expired")
        held.acked = max(held.acked, rev)
        return self._answer("ok", held.expires - self.now)

    def _leave(self, lease_id: str) -> object:
        self.leases.pop(lease_id, None)
        return self._answer("ok")

    def _touch(self, op_id: str, ttl: int, lease: int, known: int, environment: str, *pairs: Any) -> object:
        seen = dict(zip(pairs[::2], pairs[1::2], strict=True))
        self.touches.append(seen)
        self.known.append(known)
        return {"status": "ok", "now": self.now, "rev": self.contents.rev, "touched": len(seen)}

    def _is_forked(self, rev: int, position_id: str) -> bool:
        return rev > self.contents.rev or (rev == self.contents.rev and position_id != self.contents.id)


class FollowerWorld:
    """A follower and its Redis. Published messages wait in `messages` until `deliver`."""

    def __init__(self, *, ttl_ms: int = 86_400_000, touch_interval_s: float = 1.0) -> None:
        self.now = 100.0
        self.server = Server()
        self.server.now = _EPOCH_MS + 100_000
        self.messages: list[bytes] = []
        self.server.publish = self.messages.append
        self.keys: EnvironmentKeyspace = KEYS
        self.context = WriteContext(KEYS, ttl_ms, LEASE_MS, lambda: self.now)
        self.follower = Follower(self.context, "{}", touch_interval_s, random.Random(0))

    def advance(self, seconds: float) -> None:
        """Let time pass, here and at Redis."""
        self.now += seconds
        self.server.now += round(seconds * 1000)

    def deliver(self) -> None:
        """Deliver all published messages."""
        messages, self.messages[:] = list(self.messages), []
        for message in messages:
            self.follower.message(message, self.now)

    def poll(self) -> list[FollowerRequest]:
        return self.follower.poll(self.now)

    def answer(self, request: FollowerRequest) -> None:
        self.follower.answered(request, self.server.run(request.call), self.now)

    def fail(self, request: FollowerRequest) -> None:
        self.follower.failed(request, UNAVAILABLE, self.now)

    def run(self) -> list[str]:
        """Poll and answer until nothing is due; returns the names of the scripts."""
        ran: list[str] = []
        while requests := self.poll():
            for request in requests:
                ran.append(script_of(request))
                self.answer(request)
            assert len(ran) < 1000, "it polls without end"
        return ran

    def go_live(self) -> None:
        """Subscribe, sync and take a lease."""
        self.follower.subscribed(self.now)
        self.run()
        assert self.fresh

    def until(self, condition: Any, seconds: float) -> None:
        """Run like a driver until the condition holds."""
        end = self.now + seconds
        while True:
            self.run()
            self.deliver()
            if condition():
                return
            assert self.now < end, "in time"
            self.advance(max(0.001, min(self.follower.wake_at(self.now) - self.now, end - self.now)))

    @property
    def fresh(self) -> bool:
        return self.now < self.follower.fresh_until

    def look_up(self, key: str) -> None:
        """Record a look-up as a view does."""
        self.follower.touch(self.follower.sessions[key], self.now)
