"""The count of a project's sessions: usage_begin, usage_find, usage_add, usage_end, and who keeps it."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.scripts import DAY_MS, Scripts


def begin(scripts: Scripts, count: str = "c1", environment: str = "staging") -> dict[str, Any]:
    return scripts.run("usage_begin", [scripts.usage, scripts.ledger, scripts.head], [count, environment])


def add(scripts: Scripts, *keys: str) -> dict[str, Any]:
    names = [scripts.usage, scripts.ledger, scripts.head, *map(scripts.session, keys)]
    return scripts.run("usage_add", names, ["staging", *keys])


def end(scripts: Scripts, count: str = "c1") -> dict[str, Any]:
    return scripts.run("usage_end", [scripts.usage, scripts.ledger], [count])


def counted(scripts: Scripts) -> tuple[int, int]:
    """Bytes, and sessions of the environment."""
    usage = scripts.redis.hgetall(scripts.usage)
    return int(usage["bytes"]), int(usage.get("sessions:staging", 0))


def test_a_count_from_begin_to_end(scripts: Scripts) -> None:
    # Given a session, and one that has expired
    now = scripts.put("ci-1", "+label", "ü", "+overrides", '["ovr_a"]')["now"]
    scripts.store("ci-2", expiresAt=now)
    assert begin(scripts) == {"status": "ok", "id": "c1", "complete": False}
    assert scripts.redis.hgetall(scripts.usage) == {"bytes": "0", "id": "c1"}

    # When its sessions are added, one of them twice
    assert add(scripts) == add(scripts, "ci-1", "ci-2", "none") == add(scripts, "ci-1") == {"status": "ok"}
    assert end(scripts) == {"status": "ok"}

    # Then the count has it once, by its expiry
    size = 500 + len("ci-1") + 2 + len('["ovr_a"]')
    assert scripts.redis.hgetall(scripts.usage) == {
        "bytes": str(size),
        "id": "c1",
        "complete": "1",
        "sessions:staging": "1",
    }
    assert scripts.redis.zrange(scripts.ledger, 0, -1, withscores=True) == [(f"{size}:staging:ci-1", now + DAY_MS)]
    assert all(0 < scripts.redis.pttl(key) <= 30 * DAY_MS for key in (scripts.usage, scripts.ledger))
    assert scripts.redis.hget(scripts.head, "counted") == "1"
    assert begin(scripts, "c2") == {"status": "ok", "id": "c1", "complete": True}


def test_a_second_count_joins_the_first(scripts: Scripts) -> None:
    begin(scripts)

    assert begin(scripts, "c2") == {"status": "ok", "id": "c1", "complete": False}


def test_only_the_count_that_goes_on_can_end(scripts: Scripts) -> None:
    begin(scripts)

    end(scripts, "c0")

    assert scripts.redis.hget(scripts.usage, "complete") is None


def test_nothing_is_added_without_a_count(scripts: Scripts) -> None:
    scripts.put()
    before = scripts.everything()

    add(scripts, "ci-42")
    end(scripts)

    assert scripts.everything() == before


def test_finds_environments_of_this_project_only(scripts: Scripts) -> None:
    base = f"{scripts.prefix}:{{checkout}}:"
    for name in ("a:index", "b:head", "c:catalog", "staging:s:x:index", "d:s:head", "environments", "e f:head"):
        scripts.redis.set(base + name, "x")
    scripts.redis.set(f"{scripts.prefix}:{{search}}:f:head", "x")

    found: set[str] = set()
    cursor = "0"
    while True:
        page = scripts.run("usage_find", [scripts.usage], [cursor, 100, base])
        found |= set(page["environments"])
        cursor = page["cursor"]
        if cursor == "0":
            break

    assert found == {"a", "b"}


class TestKeeping:
    """Once a count has begun, each script that changes a session keeps it."""

    @pytest.fixture(autouse=True)
    def counted_project(self, scripts: Scripts) -> None:
        begin(scripts)
        end(scripts)

    def test_each_write(self, scripts: Scripts) -> None:
        scripts.put("ci-1", "+label", "xyz")
        size = 500 + len("ci-1") + len("[]")
        assert counted(scripts) == (size + 3, 1)
        scripts.activate("ci-1", "ovr_a")
        assert counted(scripts) == (size + 3 + len('"ovr_a"'), 1)
        scripts.activate("ci-2", "ovr_a")
        assert counted(scripts) == (2 * size + 3 + 2 * len('"ovr_a"'), 2)
        scripts.deactivate("ci-2", "ovr_a")
        scripts.reset("ci-1")
        assert counted(scripts) == (2 * size, 2)
        scripts.delete("ci-1")
        assert counted(scripts) == (size, 1)
        scripts.delete("ci-1")
        scripts.delete("ci-2")
        assert counted(scripts) == (0, 0)

    def test_a_touch_moves_the_expiry(self, scripts: Scripts) -> None:
        now = scripts.put("ci-1")["now"]
        scripts.redis.hset(scripts.session("ci-1"), "expiresAt", now + DAY_MS // 2)

        scripts.touch({"ci-1": now})

        assert scripts.redis.zrange(scripts.ledger, 0, -1, withscores=True) == [("506:staging:ci-1", now + DAY_MS)]

    @pytest.mark.parametrize("quotas", [("1,", ""), (",600", ""), ("1,600", "")])
    def test_a_quota_refuses_and_changes_nothing(self, scripts: Scripts, quotas: tuple[str, int | str]) -> None:
        scripts.put("ci-1", quotas=quotas)
        scripts.messages()
        before = scripts.everything()

        for reply in (
            scripts.put("ci-2", quotas=quotas),
            scripts.activate("ci-2", "ovr_a", quotas=quotas),
            *([] if quotas[0] == "1," else [scripts.put("ci-1", "+label", "x" * 95, quotas=quotas)]),
        ):
            assert reply["status"] == "quota_exceeded"
            assert reply["detail"] in ("sessions 1", "bytes 600")
        assert scripts.everything() == before
        assert scripts.messages() == []
        assert scripts.put("ci-1", "+label", "x" * 94, quotas=quotas)["status"] == "ok"

    def test_an_expired_session_is_dropped_when_room_is_needed(self, scripts: Scripts) -> None:
        # Given as many expired sessions of other environments as one script drops, and one more
        scripts.redis.zadd(scripts.ledger, {f"500:live:{n}": 5 for n in range(1001)})
        scripts.redis.hset(scripts.usage, mapping={"bytes": 500 * 1001, "sessions:live": 1001})

        # Then the script asks for another run, which has room
        assert scripts.put(quotas=(",600", ""))["status"] == "uncounted"
        assert scripts.redis.zcard(scripts.ledger) == 1
        assert scripts.put(quotas=(",600", ""))["status"] == "ok"
        assert counted(scripts) == (507, 1)
        assert scripts.redis.hget(scripts.usage, "sessions:live") is None

    def test_a_new_session_keeps_the_count_for_thirty_days(self, scripts: Scripts) -> None:
        scripts.redis.persist(scripts.usage)

        now = scripts.put()["now"]

        assert [scripts.redis.pexpiretime(key) for key in (scripts.usage, scripts.ledger)] == [now + 30 * DAY_MS] * 2

    def test_a_new_environment_keeps_it_too(self, scripts: Scripts) -> None:
        scripts.put("ci-1")

        assert scripts.redis.hget(scripts.head, "counted") == "1"
        assert counted(scripts) == (506, 1)


@pytest.mark.parametrize("state", ["none", "begun", "elsewhere"])
def test_a_quota_needs_a_whole_count(scripts: Scripts, state: str) -> None:
    # Given an environment that is not counted, or not whole
    scripts.put("ci-1")
    if state != "none":
        begin(scripts)
    if state == "elsewhere":
        end(scripts)
    before = scripts.everything()

    assert scripts.put("ci-2", quotas=("9,", "")) == {"status": "uncounted", "detail": ""}

    assert scripts.everything() == before
    if state == "elsewhere":
        # Then the count was not of this environment, and is made anew
        assert begin(scripts, "c2") == {"status": "ok", "id": "c2", "complete": False}


def test_without_quotas_nothing_is_counted(scripts: Scripts) -> None:
    scripts.put("ci-1")
    scripts.delete("ci-1")

    assert not scripts.redis.exists(scripts.usage, scripts.ledger)
