"""head.lua and ping.lua: where the chain stands, and what time it is."""

from __future__ import annotations

from ..support.scripts import Scripts


def test_before_the_first_write(scripts: Scripts) -> None:
    reply = scripts.run("head", [scripts.head], [])

    assert reply == {"now": reply["now"], "rev": 0, "id": ""}


def test_after_a_write(scripts: Scripts) -> None:
    scripts.put("ci-42", op="a1")

    reply = scripts.run("head", [scripts.head], [])

    assert (reply["rev"], reply["id"]) == (1, "a1")


def test_ping_tells_redis_time(scripts: Scripts) -> None:
    seconds, _ = scripts.redis.time()

    assert 0 <= scripts.run("ping", [], [])["now"] - seconds * 1000 < 60_000
