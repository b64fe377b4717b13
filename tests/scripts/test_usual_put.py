"""The usual PUT, which put.lua answers first, does what the rest of put.lua does."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from sessionstore.protocol.scripts import load_script

from ..support.leases import Leases
from ..support.redis_server import RedisServer
from ..support.scripts import DAY_MS, LEASE_MS, Scripts

#: Scripts read the time here, so that both sides see the same.
CLOCK = "usual-put:clock"
YEAR_2100_MS = 4_102_444_800_000
#: How many PUTs were usual.
TAKEN = "usual-put:taken"


def with_a_clock(text: str) -> str:
    return text.replace("call('TIME')", f"call('HMGET', '{CLOCK}', 's', 'us')")


def general_part(text: str) -> str:
    """put.lua without the usual PUT."""
    start = text.index("do\n  local call, find, format")
    return text[:start] + text[text.index("\nend\n", start) + 5 :]


def counting(text: str) -> str:
    """put.lua that counts the usual PUTs, where they begin to write."""
    write = "      call('ZADD', KEYS[2], seen, ARGV[7])\n"
    assert text.count(write) == 1
    return text.replace(write, f"      call('INCR', '{TAKEN}')\n{write}")


class Side(Scripts):
    """An environment whose PUTs run one of the two."""

    def __init__(self, client: Any, prefix: str, put: str) -> None:
        self._put = put
        super().__init__(client, prefix)

    def run(self, name: str, keys: list[str], args: list[str | int]) -> Any:
        text = self._put if name == "put" else load_script(name).text
        return self.redis.eval(with_a_clock(text), len(keys), *keys, *args)

    def state(self) -> tuple[dict[str, Any], dict[str, int]]:
        """What Redis holds, and when it removes it."""
        found = {key.removeprefix(self.prefix): value for key, value in self.everything().items()}
        return found, {name: self.redis.pexpiretime(self.prefix + name) for name in found}


@pytest.fixture
def sides(shared_redis: RedisServer, prefix: str) -> Iterator[tuple[Side, Side]]:
    text = load_script("put").text
    with shared_redis.client(decode_responses=True) as client:
        usual = Side(client, f"{prefix}-usual", counting(text))
        general = Side(client, f"{prefix}-general", general_part(text))
        yield usual, general
        usual.close()
        general.close()
        client.delete(CLOCK, TAKEN)


VALUES = {
    "label": ["a", "b", "é", "x" * 256, '"\\', "[]", "0"],
    "scenario": ["checkout-down", "slow"],
    "overrides": ["[]", '["ovr_a"]', '["ovr_a","ovr_b"]'],
    "globalDelayMs": ["0", "250"],
    "globalDelayMaxMs": ["0", "500"],
    "ttlSeconds": ["60"],
}
NUMBERS = ["rev", "expiresAt", "lastSeenAt", "createdAt", "modifiedAt", "lookedUpAt", "expiryRev", "ttlSeconds"]
HEAD = ["rev", "maxTtl", "countableAt", "keptUntil", "expiredLeases", "lostRev", "id", "layout", "epoch", "replid"]
WEIRD = ["nan", "inf", "-1", "1.5", "x", "", "9007199254740993", "1e3", "07", "0"]


def random_patch(rng: random.Random) -> list[str]:
    if rng.random() < 0.9:
        names = rng.sample(["label", "scenario", "overrides"], rng.choice([1, 1, 2]))
    else:
        names = rng.sample(list(VALUES), rng.randint(1, 6))
    patch = []
    for name in names:
        clears = name != "overrides" and rng.random() < 0.1
        patch += [f"-{name}", ""] if clears else [f"+{name}", rng.choice(VALUES[name])]
    return patch


Action = Callable[[Side, Leases], Any]


class Steps:
    """Random steps, each taken on both sides."""

    def __init__(self, sides: tuple[Side, Side], seed: int) -> None:
        self._sides = sides
        self.leases = [Leases(side) for side in sides]
        self._rng = random.Random(seed)
        self._now_ms = sides[0].redis.time()[0] * 1000
        self._number = 0

    def take(self) -> list[Any]:
        """Take one step; returns what each side answers, and the first word of an error."""
        rng = self._rng
        self._number += 1
        self._set_clock(rng.choice([0, 1, 5, 40, 700]) if rng.random() < 0.99 else rng.choice([-3_000, 2 * DAY_MS]))
        action, answers = self._action(), []
        for side, leases in zip(self._sides, self.leases, strict=True):
            try:
                answers.append(action(side, leases))
            except redis.ResponseError as exc:
                answers.append(without_place(exc))
        return answers

    def _set_clock(self, later_ms: int) -> None:
        self._now_ms += later_ms
        self._sides[0].redis.hset(CLOCK, mapping={"s": self._now_ms // 1000, "us": self._now_ms % 1000 * 1000})

    def _action(self) -> Action:
        rng, kind, op = self._rng, self._rng.random(), f"op{self._number}"
        key = rng.choice(["ci-1", "ci-2", "ci-3", "tést"])
        common: dict[str, Any] = {
            "op": op,
            "actor": rng.choice(["", "", "ci", "é"]),
            "wait": rng.choice("01"),
            "ttl": rng.choice([DAY_MS] * 19 + [DAY_MS // 2]),
            "known": rng.choice([0] * 99 + [1_000_000]),
        }
        if kind < 0.77:
            patch = random_patch(rng)
            if rng.random() < 0.05:
                common |= {"if_match": rng.choice(["*", ",3,"]), "if_none_match": rng.choice(["", "*"])}
            if rng.random() < 0.05:
                common["quotas"] = rng.choice([("2,", ""), (",9000", "1")])
            return lambda side, leases: side.put(key, *patch, **common)
        if kind < 0.82:
            name = rng.choice(["delete", "reset"])
            return lambda side, leases: getattr(side, name)(key, **common)
        if kind < 0.85:
            seen = {key: self._now_ms + rng.choice([-50, 0, 90_000])}
            return lambda side, leases: side.touch(seen, op=op)
        if kind < 0.94:
            name, lease = rng.choice(["join", "renew", "ack", "leave"]), rng.choice(["l1", "l2"])
            return lambda side, leases: lease_call(side, leases, name, lease)
        seed = rng.random()
        return lambda side, leases: tamper(side, random.Random(seed), key)

    def begin_anew(self) -> None:
        """Begin with a session, and leases that may be counted, so that PUTs are usual."""
        self._set_clock(0)
        for side in self._sides:
            keys = side.redis.keys(f"{side.prefix}:*")
            if keys:
                side.redis.delete(*keys)
            side.put("ci-1", "+label", "a")
        self._set_clock(LEASE_MS + 1)
        if self._rng.random() < 0.5:
            for side, leases in zip(self._sides, self.leases, strict=True):
                lease_call(side, leases, "join", "l1")

    def close(self) -> None:
        for leases in self.leases:
            leases.close()


def without_place(error: redis.ResponseError) -> str:
    """The first word of a script's error: the rest says where it is."""
    return re.sub(r"^user_script:\d+: ", "", str(error)).split()[0]


def lease_call(side: Side, leases: Leases, name: str, lease: str) -> Any:
    rev, write_id, epoch = side.redis.hmget(side.head, "rev", "id", "epoch")
    position = (int(rev) if (rev or "").isdigit() else 0, write_id or "")
    if name == "leave":
        return leases.leave(lease)
    return getattr(leases, name)(lease, *position, *([epoch or ""] if name == "ack" else []))


def tamper(side: Side, rng: random.Random, key: str) -> None:
    """Change what no script would."""
    session = side.session(key)
    match rng.randint(0, 7):
        case 0:
            name = rng.choice(NUMBERS)
            held = side.redis.hget(side.head if name == "rev" else session, name) or ""
            later = [str(int(held) + 5_000)] * 5 if held.isdigit() else []
            side.redis.hset(session, name, rng.choice([*WEIRD, *later]))
        case 1:
            side.redis.hset(
                session, rng.choice(["label", "scenario", "modifiedBy", "overrides"]), rng.choice(["é\x01", "[]"])
            )
        case 2:
            side.redis.hset(side.head, rng.choice(HEAD), rng.choice(WEIRD))
        case 3:
            side.redis.sadd(side.environments, rng.choice(["staging", "other"]))
        case 4:
            side.redis.hset(side.catalog, "digest", "x")
        case 5:
            side.redis.zadd(side.index, {"ci-gone": 1})
        case 6:
            # A project whose sessions are counted
            side.redis.hset(side.head, "counted", "1")
            side.redis.hset(side.usage, mapping={"bytes": 0, "id": "count", "complete": "1"})
        case _:
            side.redis.set(session, "a string", pxat=YEAR_2100_MS)


@pytest.mark.parametrize("seed", range(5))
def test_both_answer_store_and_publish_the_same(sides: tuple[Side, Side], seed: int) -> None:
    usual, general = sides
    steps = Steps(sides, seed)
    try:
        for number in range(500):
            if number % 12 == 0:
                steps.begin_anew()
            answers = steps.take()
            assert answers[0] == answers[1]
            assert usual.messages() == general.messages()
            assert usual.state() == general.state()
    finally:
        steps.close()
    assert int(usual.redis.get(TAKEN)) > 60


@pytest.mark.parametrize(
    "find",
    [
        lambda side: side.redis.hset(side.session("ci-1"), "rev", "9"),
        lambda side: side.redis.hset(side.session("ci-1"), "overrides", "[]"),
        lambda side: side.redis.hset(side.session("ci-1"), "lastSeenAt", str(YEAR_2100_MS)),
        lambda side: side.redis.hset(side.head, "replid", "0" * 40),
        lambda side: side.redis.hset(side.head, "layout", "3"),
        lambda side: side.redis.hset(side.head, "maxTtl", "1000"),
    ],
    ids=[
        "a lost revision",
        "no overrides, as text",
        "a clock set back",
        "another primary",
        "another layout",
        "a longer TTL",
    ],
)
def test_what_is_out_of_the_ordinary_is_not_usual(sides: tuple[Side, Side], find: Callable[[Side], Any]) -> None:
    steps = Steps(sides, seed=0)
    steps.begin_anew()
    outcomes = []
    for side, leases in zip(sides, steps.leases, strict=True):
        lease_call(side, leases, "join", "l1")
        find(side)
        try:
            answer: Any = side.put("ci-1", "+label", "b")
        except redis.ResponseError as exc:
            answer = without_place(exc)
        outcomes.append((answer, side.messages(), side.state()))
    steps.close()

    assert outcomes[0] == outcomes[1]
    assert sides[0].redis.get(TAKEN) is None
