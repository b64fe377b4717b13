"""page.lua: one page of the index, newest seen first."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ..support.scripts import Scripts

Place = tuple[str | int, str]
START: Place = ("", "")


def page(scripts: Scripts, limit: int, after: Place = START, *, look: int | None = None, prefix: str = "") -> Any:
    arguments = ["staging", limit, limit if look is None else look, *after, prefix]
    reply = scripts.run("page", [scripts.index, scripts.environments], arguments)
    assert reply["status"] == "ok"
    return reply


def test_lists_the_newest_first(scripts: Scripts) -> None:
    scripts.redis.zadd(scripts.index, {"a": 1, "b": 1_800_000_000_001, "c": 1_800_000_000_002})

    assert page(scripts, 10) == {
        "status": "ok",
        "members": [["c", 1_800_000_000_002], ["b", 1_800_000_000_001], ["a", 1]],
        "next": None,
    }
    assert page(scripts, 2) == {
        "status": "ok",
        "members": [["c", 1_800_000_000_002], ["b", 1_800_000_000_001]],
        "next": ["b", 1_800_000_000_001],
    }
    assert page(scripts, 3)["next"] is None


def test_an_empty_index_has_no_page(scripts: Scripts) -> None:
    for after in (START, (5, "a")):
        assert page(scripts, 10, after) == {"status": "ok", "members": [], "next": None}


def test_pages_follow_each_other_through_ties(scripts: Scripts) -> None:
    # Given more members of one score than any page takes, with bytes that a locale would order differently
    names = [f"k{number}" for number in range(40)] + ["Z", "a", "ä", "\x7f", "zz", "a\x00b"]
    scripts.redis.zadd(scripts.index, {**dict.fromkeys(names, 5), "before": 9, "after": 1})

    listed: list[str] = []
    after: Place | None = START
    while after is not None:
        reply = page(scripts, 3, after)
        listed += [name for name, _ in reply["members"]]
        after = None if reply["next"] is None else (reply["next"][1], reply["next"][0])

    assert listed == ["before", *sorted(names, key=str.encode, reverse=True), "after"]


def test_a_page_begins_after_its_place_wherever_that_is(scripts: Scripts) -> None:
    # Given members of few scores
    rng = random.Random(7)
    members = {f"{rng.choice('aäZ')}{number}": rng.randint(1, 4) for number in range(60)}
    scripts.redis.zadd(scripts.index, members)
    in_order = sorted(((score, name.encode()) for name, score in members.items()), reverse=True)

    # When a page begins after a member, or where none is or was, then it has those that are less
    for score, name in [*in_order, (2, b"b"), (3, b""), (3, b"\xff"), (0, b"x"), (9, b"x")]:
        found = page(scripts, 100, (score, name.decode("utf-8", "ignore")))["members"]
        place = (score, name.decode("utf-8", "ignore").encode())
        assert [(score, name.encode()) for name, score in found] == [one for one in in_order if one < place]


def test_members_may_hold_anything(scripts: Scripts) -> None:
    scripts.redis.zadd(scripts.index, {'"\\/\n{}é': 5})

    assert page(scripts, 10)["members"] == [['"\\/\n{}é', 5]]


def test_a_prefix_is_compared_byte_by_byte(scripts: Scripts) -> None:
    names = ["ci-1", "ci-12", "ci-", "CI-1", "xci-1", "ci*", "ci-[1]", "ciä", "ci", "ci-1\x00"]
    scripts.redis.zadd(scripts.index, dict.fromkeys(names, 5))

    def found(prefix: str) -> set[str]:
        return {name for name, _ in page(scripts, 10, look=100, prefix=prefix)["members"]}

    for prefix in ("ci-", "ci-1", "ci*", "ci-[", "ci?", ".", "cië", "c", "xci-1"):
        assert found(prefix) == {name for name in names if name.startswith(prefix)}


@pytest.mark.parametrize("look", [1, 7, 100])
def test_looks_at_no_more_members_than_it_may(scripts: Scripts, look: int) -> None:
    # Given few members that match among many
    names = [f"{'ci' if number % 10 == 3 else 'other'}-{number}" for number in range(50)]
    scripts.redis.zadd(scripts.index, {name: 100 - number for number, name in enumerate(names)})

    listed: list[str] = []
    after: Place | None = START
    pages = 0
    while after is not None:
        reply = page(scripts, 2, after, look=look, prefix="ci-")
        listed += [name for name, _ in reply["members"]]
        pages += 1
        after = None if reply["next"] is None else (reply["next"][1], reply["next"][0])

    # Then pages may be empty, and all are found
    assert listed == [name for name in names if name.startswith("ci-")]
    assert pages >= 50 // look


def test_an_unregistered_environment_is_unknown(scripts: Scripts) -> None:
    scripts.redis.sadd(scripts.environments, "production")

    reply = scripts.run("page", [scripts.index, scripts.environments], ["staging", 10, 10, "", "", ""])

    assert reply == {"status": "unknown_environment", "detail": "staging"}
