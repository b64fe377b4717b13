"""The scripts that a view calls for its lease, run by EVALSHA, and what they publish."""

from __future__ import annotations

from typing import Any

import fakeredis

from .scripts import LEASE_MS, Scripts, read_until

__all__ = ["OTHER_EPOCH", "OTHER_PRIMARY", "Leases"]

#: An epoch of another run of the server.
OTHER_EPOCH = "0" * 12 + ":l1"
#: What its primary writes to the head.
OTHER_PRIMARY = {"epoch": OTHER_EPOCH, "replid": "0" * 40}


class Leases:
    """Views of the environment ``checkout/staging``."""

    def __init__(self, scripts: Scripts) -> None:
        self.scripts = scripts
        self.applied = f"{scripts.base}:applied"
        self._keys = [scripts.head, scripts.leases, scripts.acks, scripts.views]
        self._marker = f"{scripts.prefix}:leases-marker"
        self._pubsub: Any = scripts.redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.ssubscribe(self.applied, self._marker)
        self.announced()

    def close(self) -> None:
        self._pubsub.close()

    def join(self, lease_id: str, rev: int = 0, id: str = "", *, lease: int = LEASE_MS, info: str = "{}") -> Any:  # noqa: A002
        keys = [*self._keys, self.scripts.changes, self.applied]
        return self.scripts.run("join", keys, [lease_id, lease, info, rev, id])

    def renew(self, lease_id: str, rev: int = 0, id: str = "", epoch: str = "", *, lease: int = LEASE_MS) -> Any:  # noqa: A002
        keys = [*self._keys, self.scripts.changes, self.applied]
        return self.scripts.run("renew", keys, [lease_id, lease, rev, id, epoch])

    def renew_idle(self, lease_id: str, rev: int, id: str) -> Any:  # noqa: A002
        """Renew as a view that has acknowledged this position."""
        return self.renew(lease_id, rev, id, self.epoch())

    def ack(self, lease_id: str, rev: int, id: str, epoch: str | None = None) -> Any:  # noqa: A002
        epoch = self.epoch() if epoch is None else epoch
        return self.scripts.run("ack", [*self._keys, self.applied], [lease_id, rev, id, epoch])

    def leave(self, lease_id: str) -> Any:
        return self.scripts.run("leave", [*self._keys, self.applied], [lease_id])

    def views(self) -> Any:
        return self.scripts.run("views", [self.scripts.head, self.scripts.leases, self.scripts.views], [])

    def lease_status(self, rev: int, *, lease: int = LEASE_MS) -> Any:
        return self.scripts.run("lease_status", [*self._keys, self.scripts.changes], [rev, lease])

    def announced(self) -> list[dict[str, Any]]:
        """The messages on `applied` since the last call."""
        return read_until(self._marker, self.scripts.redis, self._pubsub)

    # The contents of the keys

    def expiry(self, lease_id: str) -> float | None:
        score: float | None = self.scripts.redis.zscore(self.scripts.leases, lease_id)
        return score

    def acked(self, lease_id: str) -> float | None:
        score: float | None = self.scripts.redis.zscore(self.scripts.acks, lease_id)
        return score

    def view_fields(self, lease_id: str) -> dict[str, str]:
        """A lease's entry in the hash of views."""
        fields: dict[str, str] = self.scripts.redis.hgetall(self.scripts.views)
        return {name: value for name, value in fields.items() if name.split(":")[0] == lease_id}

    def epoch(self) -> str:
        """The epoch that the head names."""
        epoch: str = self.scripts.redis.hget(self.scripts.head, "epoch")
        return epoch

    def server_run(self) -> str:
        """The part of an epoch that names the reign of this primary. fakeredis does not tell it, and never restarts."""
        if isinstance(self.scripts.redis, fakeredis.FakeRedis):
            return "-"
        info = self.scripts.redis.info()
        return f"{info['run_id'][:12]}{info['master_replid2']:0>40}"[:20]

    def replication_id(self) -> str | None:
        """The id of this primary's replication. fakeredis does not tell it."""
        if isinstance(self.scripts.redis, fakeredis.FakeRedis):
            return None
        replid: str = self.scripts.redis.info("replication")["master_replid"]
        return replid

    def replid(self) -> str | None:
        """The id of the replication that the head names."""
        replid: str | None = self.scripts.redis.hget(self.scripts.head, "replid")
        return replid

    # Changes that bypass the scripts

    def run_out(self, lease_id: str) -> None:
        self.scripts.redis.zadd(self.scripts.leases, {lease_id: self.scripts.now()}, xx=True)

    def age(self, lease_id: str, ms: int) -> None:
        """Change the lease as if `ms` had passed."""
        self.scripts.redis.zincrby(self.scripts.leases, -ms, lease_id)
