"""page.lua: one page of the index, newest seen first."""

from __future__ import annotations

from ..support.scripts import Scripts


def page(scripts: Scripts, limit: int, score: str | int = "+inf", member: str = "") -> list[list[str | int]]:
    reply = scripts.run("page", [scripts.index, scripts.environments], ["staging", limit, score, member])
    assert reply["status"] == "ok"
    members: list[list[str | int]] = reply["members"]
    return members


def test_newest_first(scripts: Scripts) -> None:
    scripts.redis.zadd(scripts.index, {"a": 1, "b": 1_800_000_000_001, "c": 1_800_000_000_002})

    assert page(scripts, 10) == [["c", 1_800_000_000_002], ["b", 1_800_000_000_001], ["a", 1]]
    assert page(scripts, 2) == [["c", 1_800_000_000_002], ["b", 1_800_000_000_001]]


def test_an_empty_index(scripts: Scripts) -> None:
    assert page(scripts, 10) == []


def test_pages_follow_each_other_through_ties(scripts: Scripts) -> None:
    # Given more members of one score than any page takes, with bytes that a locale would order differently
    names = [f"k{number}" for number in range(40)] + ["Z", "a", "ä", "\x7f", "zz", "a\x00b"]
    scripts.redis.zadd(scripts.index, {**dict.fromkeys(names, 5), "before": 9, "after": 1})

    listed: list[str] = []
    score: str | int = "+inf"
    member = ""
    while found := page(scripts, 3, score, member):
        listed += [str(name) for name, _ in found]
        member, score = str(found[-1][0]), found[-1][1]

    assert listed == ["before", *sorted(names, key=str.encode, reverse=True), "after"]


def test_a_member_that_is_gone_still_marks_the_place(scripts: Scripts) -> None:
    scripts.redis.zadd(scripts.index, {"a": 5, "c": 5, "d": 5})

    assert page(scripts, 10, 5, "b") == [["a", 5]]


def test_members_may_hold_anything(scripts: Scripts) -> None:
    scripts.redis.zadd(scripts.index, {'"\\/\n{}é': 5})

    assert page(scripts, 10) == [['"\\/\n{}é', 5]]


def test_an_environment_that_is_not_registered_is_unknown(scripts: Scripts) -> None:
    scripts.redis.sadd(scripts.environments, "production")

    reply = scripts.run("page", [scripts.index, scripts.environments], ["staging", 10, "+inf", ""])

    assert reply == {"status": "unknown_environment", "detail": "staging"}
