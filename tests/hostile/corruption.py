"""Corrupt states of Redis: each key of an environment with another type, each field with a bad value.

A corrupt record harms nothing but itself, and says how to remove it. Without it, everything works again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sessionstore import View
from sessionstore.api_keys.model import hash_secret

from ..support.polling import eventually
from .http1 import Answer
from .world import PATIENCE_S, PREFIX, Client, World, in_parallel

__all__ = ["State", "attack", "states"]

_DEEP = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
_VALUES: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "nan": b"nan",
    "inf": b"1e999",
    "negative": b"-1",
    "fraction": b"1.5",
    "words": b'x","y":[',
    "not UTF-8": b"\xff\xc0",
    "deep": _DEEP,
}
_SESSION_FIELDS = (
    "rev", "label", "scenario", "overrides", "globalDelayMs", "globalDelayMaxMs", "createdAt", "lastSeenAt",
    "expiresAt", "expiryRev", "modifiedAt", "modifiedBy", "lookedUpAt", "ttlSeconds",
)  # fmt: skip
_HEAD_FIELDS = ("rev", "id", "maxTtl", "expiredLeases", "countableAt", "lostRev", "epoch", "catalogRev", "layout")
_PARTS = (
    "s:bad", "index", "head", "leases", "acks", "views", "catalog", "catalog:mocks", "catalog:local",
    "catalog:scenarios", "environments",
)  # fmt: skip
_TYPES = ("string", "list", "set", "hash", "zset")


@dataclass(frozen=True)
class State:
    """What is broken: a field of a hash, a member of a sorted set, or a whole key."""

    number: int
    part: str
    field: str
    value: str

    @property
    def project(self) -> str:
        return f"corrupt{self.number}"


def states(source: random.Random) -> list[State]:
    """Every field with each bad value, and every key with each other type."""
    broken = [
        *itertools.product(("s:bad",), _SESSION_FIELDS, _VALUES),
        *itertools.product(("head",), _HEAD_FIELDS, ("missing", "nan", "negative", "words")),
        *itertools.product(("views",), ("lease", "lease:head", "lease:applied", "lease:epoch"), ("missing", "words")),
        *itertools.product(("index", "leases", "acks"), ("member",), ("not UTF-8", "inf", "negative", "fraction")),
        *itertools.product(("catalog",), ("json", "digest"), ("missing", "words", "not UTF-8", "deep")),
        *itertools.product(_PARTS, ("",), _TYPES),
    ]
    return [State(number, *each) for number, each in enumerate(broken)]


async def attack(world: World, inputs: Sequence[State]) -> list[str]:
    """Break each state in a project of its own, while a view listens, and mend it."""

    async def one(state: State) -> list[str]:
        return await _check(world, state)

    failures = await in_parallel(inputs, one)
    return failures + await _check_api_keys(world)


_SCENARIO = {"id": "scn_a", "name": "A", "urlId": "a", "mocks": ["ovr_a"]}
_FULL = {"label": "a", "scenario": "scn_a", "overrides": ["ovr_a"], "globalDelayMs": 1, "globalDelayMaxMs": 2}
_TEXTS = ("label", "scenario", "modifiedBy")
_REQUIRED = ("rev", "createdAt", "lastSeenAt", "expiresAt")


def _is_corrupt(state: State) -> bool:
    """Whether a session in this state can't be read: docs/operations.md."""
    if not state.field:
        return True
    if state.field in _TEXTS:
        return state.value in ("not UTF-8", "deep")  # too long, too
    return state.value != "missing" or state.field in _REQUIRED


async def _check(world: World, state: State) -> list[str]:
    case = _Case(world, state)
    async with world.client() as client:
        with world.store() as store:
            if state.part.startswith("catalog") or state.part == "environments":
                catalog = {"mocks": [{"id": "ovr_a", "name": "A"}], "scenarios": [_SCENARIO]}
                document = {"project": state.project, "environments": {"staging": catalog}}
                await asyncio.to_thread(store.project(state.project).apply_catalog, document)
            environment = store.environment(state.project, "staging")
            with contextlib.closing(await asyncio.to_thread(environment.view().open)) as view:
                await case.run(client, view)
    return case.wrong


class _Case:
    """One state: break it, call everything, mend it."""

    def __init__(self, world: World, state: State) -> None:
        self.world = world
        self.state = state
        self.place = {"project": state.project, "environment": "staging"}
        self.beside = {"project": f"{state.project}-beside", "environment": "staging"}
        self.wrong: list[str] = []

    def must(self, what: str, answer: Answer, *statuses: int) -> Answer:
        if answer.status not in statuses:
            self.wrong.append(f"{what}: {answer.status} {answer.body[:300]!r}")
        return answer

    async def run(self, client: Client, view: View) -> None:
        for place, key in ((self.place, "bad"), (self.place, "good"), (self.beside, "good")):
            self.must("before", await client.put(place, key, {**_FULL, "ttlSeconds": 3600}), 200)
        await eventually(lambda: view.peek("good") is not None, "the view sees the session", PATIENCE_S)
        before = (await client.call("GET", "/sessions/good", self.place)).document
        self._break()
        if self.state.part == "s:bad":
            await self._call_bad(client)
            good = self.must("the good session", await client.call("GET", "/sessions/good", self.place), 200)
            if good.document != before:
                self.wrong.append(f"the good session became {good.document}")
            self.must(
                "removing it", await client.call("DELETE", "/sessions/bad", {**self.place, "mode": "delete"}), 200
            )
        else:
            await self._call_environment(client)
            self.world.raw.delete(self._key)
        self.must("another project", await client.put(self.beside, "good", {"label": "b"}), 200)
        for key in ("bad", "good"):
            label = f"healed {key}"
            await self._await_put(client, key, label)
            await eventually(functools.partial(_serves, view, key, label), f"the view serves {label!r}", PATIENCE_S)

    async def _call_bad(self, client: Client) -> None:
        """A corrupt session is 500 with its remedy, but for lists, which leave it out."""
        corrupt = _is_corrupt(self.state)
        listed = self.must("listing", await client.call("GET", "/sessions", self.place), 200)
        if ("bad" in {session["sessionKey"] for session in listed.document["sessions"]}) == corrupt:
            self.wrong.append(f"the list is {listed.body[:300]!r}")
        status = 500 if corrupt else 200
        for what, answer in (
            ("GET", await client.call("GET", "/sessions/bad", self.place)),
            ("PUT", await client.put(self.place, "bad", {"label": "x"})),
            ("POST", await client.call("POST", "/sessions/bad/overrides/ovr_b", self.place)),
            ("DELETE", await client.call("DELETE", "/sessions/bad/overrides/ovr_b", self.place)),
            ("reset", await client.call("DELETE", "/sessions/bad", {**self.place, "mode": "reset"})),
        ):
            self.must(what, answer, status)
            if answer.status == 500 and b"Delete the session" not in answer.body:
                self.wrong.append(f"{what}: no remedy in {answer.body!r}")

    async def _call_environment(self, client: Client) -> None:
        """Calls on a corrupt environment fail in the API's form, or work."""
        for method, path, query in (
            ("GET", "/sessions/good", self.place),
            ("POST", "/sessions/good/overrides/ovr_a", self.place),
            ("DELETE", "/sessions/bad", {**self.place, "mode": "reset"}),
            ("GET", "/sessions", self.place),
            ("GET", "/scenarios", self.place),
            ("GET", "/views", self.place),
            ("GET", "/sessions/good", {"project": self.state.project}),
            ("DELETE", "/sessions", {**self.place, "prefix": "other", "mode": "delete"}),
        ):
            what = f"{method} {path}"
            self.must(what, await client.call(method, path, query), 200, 404, 422, 500, 503)
        self.must("PUT", await client.put(self.place, "good", {"label": "x"}), 200, 404, 422, 500, 503)

    async def _await_put(self, client: Client, key: str, label: str) -> None:
        """After a loss of history, the first writes may say that they are not in effect."""
        answer = await client.put(self.place, key, {"label": label})
        for _ in range(20):
            if answer.status != 503:
                break
            answer = await client.put(self.place, key, {"label": label})
        self.must("PUT at last", answer, 200)

    @property
    def _key(self) -> str:
        if self.state.part == "environments":
            return f"{PREFIX}:{{{self.state.project}}}:environments"
        return self.world.key(self.state.project, self.state.part)

    def _break(self) -> None:
        raw, key, state = self.world.raw, self._key, self.state
        if not state.field:
            # At once: a view that renews its lease would make the key anew.
            with raw.pipeline() as transaction:
                transaction.delete(key)
                _FILL[state.value](transaction, key)
                transaction.execute()
        elif state.field == "member":
            scores = {"not UTF-8": 9e14, "inf": "inf", "negative": -5, "fraction": 1.5}
            raw.zadd(key, {b"\xff" if state.value == "not UTF-8" else b"odd": scores[state.value]})
        else:
            field, value = state.field, _VALUES[state.value]
            if state.part == "views":
                [lease] = raw.zrange(self.world.key(state.project, "leases"), 0, 0)
                field = lease.decode() + field.removeprefix("lease")
            if value is None:
                raw.hdel(key, field)
            else:
                raw.hset(key, field, value)


def _serves(view: View, key: str, label: str) -> bool:
    # `peek`, because a look-up would touch the session.
    session = view.peek(key) if view.fresh else None
    return session is not None and session.label == label


_FILL: dict[str, Callable[[Any, str], object]] = {
    "string": lambda raw, key: raw.set(key, "x"),
    "list": lambda raw, key: raw.rpush(key, "x"),
    "set": lambda raw, key: raw.sadd(key, "x"),
    "hash": lambda raw, key: raw.hset(key, "x", "y"),
    "zset": lambda raw, key: raw.zadd(key, {"x": 1}),
}


async def _check_api_keys(world: World) -> list[str]:
    """A record of an API key that something else wrote opens nothing, and harms no other key."""
    wrong = []
    with world.store() as store:
        made = {name: await asyncio.to_thread(store.api_keys.create, name) for name in ("good", *_RECORDS)}
    digests = {name: hash_secret(new.secret) for name, new in made.items()}
    for name, record in _RECORDS.items():
        world.raw.hset(f"{PREFIX}:keys", digests[name], record)
    for name, new in made.items():
        async with world.client(f"Bearer {new.secret}") as client:
            deadline = time.monotonic() + PATIENCE_S
            expected = 200 if name == "good" else 401
            query = {"project": "keys", "environment": "staging"}
            while (answer := await client.call("GET", "/sessions", query)).status != expected:
                if time.monotonic() > deadline:
                    wrong.append(f"API key {name}: {answer.status}")
                    break
    world.raw.hdel(f"{PREFIX}:keys", *digests.values())
    return wrong


_RECORDS: dict[str, bytes] = {
    "empty": b"",
    "words": b"x",
    "list": b"[]",
    "object": b"{}",
    "not UTF-8": b"\xff",
    "deep": _DEEP,
    "no project": b'{"id":"x","name":"x","createdAt":1,"expiresAt":null,"revokedAt":null,"lastUsedAt":null}',
    "wrong types": b'{"id":1,"name":2,"project":3,"createdAt":"x","expiresAt":[],"revokedAt":{},"lastUsedAt":true}',
}
