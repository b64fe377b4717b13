"""How long Redis keeps a head and an index (lib/revision.lua)."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.leases import Leases
from ..support.scripts import DAY_MS, LEASE_MS, Scripts
from .test_catalog_apply import apply


def kept_until(scripts: Scripts) -> int:
    return int(scripts.redis.hget(scripts.head, "keptUntil"))


def expiries(scripts: Scripts) -> list[int]:
    return [scripts.redis.pexpiretime(key) for key in (scripts.head, scripts.index)]


def age(scripts: Scripts, days: int) -> None:
    """Let the environment be kept for so many days less."""
    time = kept_until(scripts) - days * DAY_MS
    scripts.redis.hset(scripts.head, "keptUntil", time)
    for key in (scripts.head, scripts.index):
        scripts.redis.pexpireat(key, time)


@pytest.mark.parametrize("ttl", [1000, DAY_MS, 366 * DAY_MS])
def test_for_thirty_days_after_the_last_session(scripts: Scripts, ttl: int) -> None:
    reply = scripts.put(ttl=ttl)

    expected = reply["now"] + ttl + 30 * DAY_MS
    assert [kept_until(scripts), *expiries(scripts)] == [expected] * 3
    assert expected - scripts.redis.pexpiretime(scripts.session("ci-42")) >= 29 * DAY_MS


@pytest.mark.parametrize(("days", "moves"), [(0, False), (2, True)])
@pytest.mark.parametrize("name", ["put", "activate", "deactivate", "reset", "delete"])
def test_a_change_keeps_it_for_longer_once_a_day(scripts: Scripts, name: str, days: int, moves: bool) -> None:
    scripts.put("ci-1", "+overrides", '["ovr_a"]')
    scripts.put("ci-2")
    age(scripts, days)
    before = kept_until(scripts)

    changes: dict[str, Any] = {
        "put": lambda: scripts.put("ci-1", "+label", "x"),
        "activate": lambda: scripts.activate("ci-1", "ovr_b"),
        "deactivate": lambda: scripts.deactivate("ci-1", "ovr_a"),
        "reset": lambda: scripts.reset("ci-1"),
        "delete": lambda: scripts.delete("ci-1"),
    }
    reply = changes[name]()

    assert kept_until(scripts) == (reply["now"] + 31 * DAY_MS if moves else before)
    assert expiries(scripts) == [kept_until(scripts)] * 2


@pytest.mark.parametrize(("days", "moves"), [(9, False), (11, True)])
def test_a_touch_that_moves_an_expiry_keeps_it_for_longer(scripts: Scripts, days: int, moves: bool) -> None:
    now = scripts.put()["now"]
    scripts.redis.hset(scripts.session("ci-42"), "expiresAt", now + DAY_MS // 2)
    age(scripts, days)
    before = kept_until(scripts)

    reply = scripts.touch({"ci-42": now})

    assert kept_until(scripts) == (reply["now"] + 31 * DAY_MS if moves else before)
    assert expiries(scripts) == [kept_until(scripts)] * 2


def test_a_new_index_expires_too(scripts: Scripts) -> None:
    scripts.put("a")
    scripts.delete("a")
    assert not scripts.redis.exists(scripts.index)

    scripts.put("b")

    assert expiries(scripts) == [kept_until(scripts)] * 2


def test_an_index_that_only_had_expired_sessions_expires_too(scripts: Scripts) -> None:
    scripts.put("a", ttl=1000)
    scripts.redis.zadd(scripts.index, {"a": 5})

    # When a new session's write drops the last entry and makes a new index
    scripts.put("b", ttl=1000)

    assert scripts.redis.zrange(scripts.index, 0, -1) == ["b"]
    assert expiries(scripts) == [kept_until(scripts)] * 2


def test_a_head_of_an_earlier_release_expires_after_its_next_change(scripts: Scripts) -> None:
    scripts.put()
    scripts.redis.hdel(scripts.head, "keptUntil")
    scripts.redis.persist(scripts.head)
    scripts.redis.persist(scripts.index)

    scripts.put("ci-42", "+label", "x")

    assert expiries(scripts) == [kept_until(scripts)] * 2


def test_an_environment_that_had_a_catalog_before_is_kept_forever(scripts: Scripts) -> None:
    scripts.redis.hset(scripts.head, mapping={"rev": 5, "id": "a", "layout": 2, "catalogRev": 5})

    scripts.put()

    assert (kept_until(scripts), expiries(scripts)) == (2**53, [-1, -1])
    scripts.put("ci-43")
    assert expiries(scripts) == [-1, -1]


def test_a_first_catalog_keeps_it_forever(scripts: Scripts) -> None:
    scripts.put()
    assert min(expiries(scripts)) > 0

    apply(scripts, {"mocks": {}, "scenarios": {}}, "ci-42")

    assert (kept_until(scripts), expiries(scripts)) == (2**53, [-1, -1])


class TestLeases:
    def test_a_join_keeps_the_head(self, scripts: Scripts, leases: Leases) -> None:
        reply = leases.join("l1")

        assert scripts.redis.pexpiretime(scripts.head) == kept_until(scripts) == reply["now"] + 2 * DAY_MS
        # and the first change keeps it for as long as any
        changed = scripts.put()
        assert expiries(scripts) == [kept_until(scripts)] * 2 == [changed["now"] + 31 * DAY_MS] * 2

    @pytest.mark.parametrize(("left_ms", "moves"), [(DAY_MS - 1, True), (DAY_MS + 60_000, False)])
    def test_a_renewal_keeps_the_head(self, scripts: Scripts, leases: Leases, left_ms: int, moves: bool) -> None:
        # Given a view that has applied the head, and has renewed since
        scripts.put(op="a1")
        leases.join("l1", 1, "a1")
        leases.renew("l1", 1, "a1")
        before = scripts.now() + left_ms
        scripts.redis.hset(scripts.head, "keptUntil", before)
        scripts.redis.pexpireat(scripts.head, before)

        reply = leases.renew("l1", 1, "a1")

        assert (reply["status"], reply["leaseMs"]) == ("ok", LEASE_MS)
        assert kept_until(scripts) == (reply["now"] + 2 * DAY_MS if moves else before)
        assert scripts.redis.pexpiretime(scripts.head) == kept_until(scripts)
