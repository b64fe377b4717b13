"""Run scripts by EVALSHA with handwritten keys and arguments, and read their effects."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import redis

from sessionstore.protocol.scripts import load_script

__all__ = ["DAY_MS", "DETAILS", "LEASE_MS", "Scripts", "published", "read_until"]

DAY_MS = 86_400_000
LEASE_MS = 2_000


#: What a reply says of a session, and no message.
DETAILS = ("ttlSeconds", "modifiedAt", "modifiedBy", "lookedUpAt")


def published(session: dict[str, Any]) -> dict[str, Any]:
    """The session of a reply as a message has it."""
    return {name: value for name, value in session.items() if name not in DETAILS}


def read_until(marker: str, client: Any, pubsub: Any) -> list[dict[str, Any]]:
    """The messages of a subscription since the last call. One on the channel `marker`, published now, ends them."""
    client.spublish(marker, "")
    messages: list[dict[str, Any]] = []
    deadline = time.monotonic() + 10
    while True:
        message = pubsub.get_sharded_message(timeout=10)
        assert time.monotonic() < deadline, "the subscription brings the marker"
        if message is not None and message["channel"] == marker:
            return messages
        if message is not None:
            messages.append(json.loads(message["data"]))


class Scripts:
    """Runs scripts on the environment ``checkout/staging``, and subscribes to its changes."""

    def __init__(self, client: Any, prefix: str, restricted: redis.Redis | None = None) -> None:
        self.redis: Any = client
        #: if given, scripts run as this client's user, who may use only the keys and channels in KEYS
        self._restricted = restricted
        self._loaded: set[str] = set()
        self.prefix = prefix
        base = f"{prefix}:{{checkout}}:staging"
        self.base = base
        self.index = f"{base}:index"
        self.head = f"{base}:head"
        self.leases = f"{base}:leases"
        self.acks = f"{base}:acks"
        self.views = f"{base}:views"
        self.changes = f"{base}:changes"
        self.catalog = f"{base}:catalog"
        self.environments = f"{prefix}:{{checkout}}:environments"
        project = f"{prefix}:{{checkout}}"
        self.usage, self.ledger, self.unregistered = (
            f"{project}:{kind}" for kind in ("usage", "ledger", "unregistered")
        )
        self._marker = f"{prefix}:marker"
        self._pubsub: Any = self.redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.ssubscribe(self._marker)
        self.listen()

    def close(self) -> None:
        self._pubsub.close()

    def listen(self) -> None:
        """Receive the changes from now on."""
        self._pubsub.ssubscribe(self.changes)
        self.messages()

    def stop_listening(self) -> None:
        """End the subscription: if the head is missing, the scripts would take it for a view's."""
        self._pubsub.sunsubscribe(self.changes)
        self.messages()

    def messages(self) -> list[dict[str, Any]]:
        """The changes published since the last call."""
        return read_until(self._marker, self.redis, self._pubsub)

    def _client_for(self, keys: list[str]) -> Any:
        """A client that may use only these keys and channels, if the server knows users."""
        if self._restricted is None:
            return self.redis
        user, password = f"user-{self.prefix}", "secret"
        patterns = [re.sub(r"([*?\[\]\\])", r"\\\1", key) for key in keys]
        rules = [part for pattern in patterns for part in (f"~{pattern}", f"&{pattern}")]
        self.redis.execute_command("ACL", "SETUSER", user, "reset", "on", f">{password}", "+@all", *rules)
        self._restricted.connection_pool.connection_kwargs.update(username=user, password=password)
        return self._restricted

    def eval_restricted(self, text: str, keys: list[str], args: list[str]) -> Any:
        """Run any text as a script."""
        return self._client_for(keys).eval(text, len(keys), *keys, *args)

    def run(self, name: str, keys: list[str], args: list[str | int]) -> dict[str, Any]:
        script = load_script(name)
        if name not in self._loaded:
            assert self.redis.script_load(script.text) == script.sha
            self._loaded.add(name)
        reply = self._client_for(keys).evalsha(script.sha, len(keys), *keys, *args)
        decoded: dict[str, Any] = json.loads(reply)
        return decoded

    def session(self, key: str) -> str:
        return f"{self.base}:s:{key}"

    def write(
        self,
        name: str,
        key: str = "ci-42",
        *args: str | int,
        op: str = "op",
        ttl: int = DAY_MS,
        lease: int = LEASE_MS,
        known: int = 0,
        wait: str = "1",
        environment: str = "staging",
        actor: str = "",
        quotas: tuple[str, int | str] = ("", ""),
    ) -> dict[str, Any]:
        """Run one of the scripts that write a session."""
        catalog = {
            "put": ["", ":mocks", ":local", ":scenarios"],
            "activate": ["", ":mocks", ":local"],
            "deactivate": ["", ":mocks", ":local"],
        }.get(name, [])
        keys = [
            self.session(key),
            self.index,
            self.head,
            self.leases,
            self.acks,
            self.views,
            self.environments,
            self.changes,
            *(self.usage, self.ledger, self.unregistered),
            *(self.catalog + part for part in catalog),
        ]
        return self.run(name, keys, [op, ttl, lease, known, wait, environment, key, actor, *quotas, *args])

    def put(
        self, key: str = "ci-42", *patch: str | int, if_match: str = "", if_none_match: str = "", **common: Any
    ) -> dict[str, Any]:
        return self.write("put", key, if_match, if_none_match, *patch, **common)

    def activate(self, key: str, override: str, *, bound: int = 200, **common: Any) -> dict[str, Any]:
        return self.write("activate", key, override, bound, **common)

    def deactivate(self, key: str, override: str, **common: Any) -> dict[str, Any]:
        return self.write("deactivate", key, override, **common)

    def reset(self, key: str, *, if_match: str = "", **common: Any) -> dict[str, Any]:
        return self.write("reset", key, if_match, **common)

    def delete(self, key: str, *, if_match: str = "", **common: Any) -> dict[str, Any]:
        return self.write("delete", key, if_match, **common)

    def get(self, key: str, environment: str = "staging") -> dict[str, Any]:
        return self.run("get", [self.session(key), self.environments], [environment, key])

    def touch(
        self, seen: dict[str, int], *, op: str = "op", ttl: int = DAY_MS, lease: int = LEASE_MS, known: int = 0
    ) -> dict[str, Any]:
        keys = [self.index, self.head, self.changes, self.usage, self.ledger, *map(self.session, seen)]
        return self.run(
            "touch", keys, [op, ttl, lease, known, "staging", *(part for pair in seen.items() for part in pair)]
        )

    def now(self) -> int:
        now: int = self.run("ping", [], [])["now"]
        return now

    def stored(self, key: str = "ci-42") -> dict[str, str]:
        """The session's hash in Redis."""
        fields: dict[str, str] = self.redis.hgetall(self.session(key))
        return fields

    def store(self, key: str = "ci-42", /, **fields: str | int) -> dict[str, str]:
        """Write a session without the scripts, by default seen now and with a TTL of a day."""
        now = self.now()
        session: dict[str, str | int] = {
            "rev": 1,
            "createdAt": now,
            "lastSeenAt": now,
            "expiresAt": now + DAY_MS,
            **fields,
        }
        self.redis.hset(self.session(key), mapping=session)
        self.redis.zadd(self.index, {key: int(session["lastSeenAt"])})
        return {name: str(value) for name, value in session.items()}

    def everything(self) -> dict[str, Any]:
        """All keys of the project and their contents, to show that nothing changed."""
        contents: dict[str, Any] = {}
        for key in sorted(self.redis.keys(f"{self.prefix}:*")):
            match self.redis.type(key):
                case "hash":
                    contents[key] = self.redis.hgetall(key)
                case "zset":
                    contents[key] = self.redis.zrange(key, 0, -1, withscores=True)
                case "set":
                    contents[key] = self.redis.smembers(key)
                case "string":
                    contents[key] = self.redis.get(key)
                case kind:
                    raise AssertionError(f"{key} is a {kind}")
        return contents
