"""A view that follows the protocol of docs/protocol.md, and uses only the scripts of this library."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from sessionstore import Session, SessionStore

from ..support.redis_server import RedisServer

SCRIPTS = Path(__file__).parents[2] / "sessionstore" / "protocol" / "scripts"
LEASE_MS = 2000


class PlainView:
    """One environment, followed step by step."""

    def __init__(self, client: Any, base: str) -> None:
        self.redis = client
        self.base = base
        self.sessions: dict[str, dict[str, Any]] = {}
        self.until = 0.0
        self.lease_id = secrets.token_hex(8)
        self.pubsub = client.pubsub()
        self.pubsub.ssubscribe(f"{base}:changes")
        assert self.pubsub.get_sharded_message(timeout=10)["type"] == "ssubscribe"
        self.take_snapshot()
        self.join()

    def run(self, name: str, keys: list[str], *args: str | int) -> dict[str, Any]:
        text = re.sub(
            r"^--@include (\S+)$",
            lambda match: (SCRIPTS / f"{match[1]}.lua").read_text(encoding="utf-8"),
            (SCRIPTS / f"{name}.lua").read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
        sha = self.redis.script_load(text)
        assert sha == hashlib.sha1(text.encode()).hexdigest()
        names = [f"{self.base}:{key}" for key in keys]
        reply: dict[str, Any] = json.loads(self.redis.evalsha(sha, len(names), *names, *args))
        return reply

    def take_snapshot(self) -> None:
        cursor, count, members = "0", 10, list[str]()
        while True:
            step = self.run("snapshot", ["head", "index", *(f"s:{key}" for key in members)], cursor, count, *members)
            self.rev, self.id = step["rev"], step["id"]
            self.sessions |= {session["sessionKey"]: session for session in step["sessions"]}
            cursor, members = step["cursor"], step["members"]
            if cursor == "0":
                if not members:
                    return
                count = 0

    def join(self) -> None:
        sent_at = time.monotonic()
        keys = ["head", "leases", "acks", "views", "changes", "applied"]
        reply = self.run("join", keys, self.lease_id, LEASE_MS, '{"host": "plain"}', self.rev, self.id)
        assert (reply["status"], reply["rev"], reply["id"]) == ("ok", self.rev, self.id)
        self.epoch = reply["epoch"]
        self.until = sent_at + (reply["leaseMs"] - LEASE_MS / 20) / 1000
        self.recorded = (self.rev, self.id)

    def renew(self) -> str:
        sent_at = time.monotonic()
        keys = ["head", "leases", "acks", "views", "changes", "applied"]
        epoch = self.epoch if self.recorded == (self.rev, self.id) else ""
        reply = self.run("renew", keys, self.lease_id, LEASE_MS, self.rev, self.id, epoch)
        status: str = reply["status"]
        if status in ("ok", "same"):
            self.until = sent_at + (reply["leaseMs"] - LEASE_MS / 20) / 1000
            self.recorded = (self.rev, self.id)
        return status

    def apply_next(self) -> bool:
        """Apply the next message; return whether a writer waits."""
        message = json.loads(self.pubsub.get_sharded_message(timeout=10)["data"])
        assert (message["rev"], message["prev"], message["epoch"]) == (self.rev + 1, self.id, self.epoch)
        self.rev, self.id = message["rev"], message["id"]
        if message["type"] == "set":
            self.sessions[message["session"]["sessionKey"]] = message["session"]
        elif message["type"] == "delete":
            del self.sessions[message["sessionKey"]]
        wait: bool = message["wait"]
        return wait

    def acknowledge(self) -> str:
        keys = ["head", "leases", "acks", "views", "applied"]
        status: str = self.run("ack", keys, self.lease_id, self.rev, self.id, self.epoch)["status"]
        if status == "ok":
            self.recorded = (self.rev, self.id)
        return status

    def close(self) -> None:
        self.until = 0.0
        self.run("leave", ["head", "leases", "acks", "views", "applied"], self.lease_id)
        self.pubsub.close()


def test_writers_wait_for_a_view_that_follows_the_page(shared_redis: RedisServer, prefix: str) -> None:
    with (
        SessionStore.from_url(shared_redis.url, prefix=prefix) as store,
        shared_redis.client(decode_responses=True) as client,
    ):
        staging = store.environment("checkout", "staging")
        for n in range(25):
            staging.put(f"before-{n}", label=str(n))
        view = PlainView(client, f"{prefix}:{{checkout}}:staging")
        assert {session["label"] for session in view.sessions.values()} == {str(n) for n in range(25)}

        returned: list[Session] = []
        writer = threading.Thread(target=lambda: returned.append(staging.put("ci-42", scenario="scn_a")))
        writer.start()

        # Given a view that has applied a write and has not acknowledged it
        assert view.apply_next() is True
        assert view.sessions["ci-42"]["scenario"] == "scn_a"
        keys = ["head", "leases", "acks", "views", "changes"]
        waited_for = view.run("lease_status", keys, view.rev, LEASE_MS)["pending"] == 1 and not returned
        assert waited_for or time.monotonic() > view.until

        # When it acknowledges it, then the write returns
        in_time = view.acknowledge() == "ok"
        writer.join(30)
        [session] = returned
        assert session.effect is not None
        if in_time:
            assert (session.effect.confirmed, session.effect.expired) == (1, 0)

        # And it renews its lease as an idle view; after a change of which nobody has told Redis, as any view
        if in_time:
            assert view.renew() in ("same", "expired")
            staging.put("ci-42", label="x", wait=False)
            view.apply_next()
            assert view.renew() in ("ok", "expired")

        # And no writer waits for it after it has left
        view.close()
        deletion = staging.delete("ci-42")
        assert deletion.effect is not None
        assert deletion.effect.confirmed == 0
