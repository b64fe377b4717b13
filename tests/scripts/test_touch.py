"""touch.lua: note when sessions were last seen."""

from __future__ import annotations

import pytest

from ..support.scripts import DAY_MS, Scripts


def test_moves_last_seen_without_telling_anybody(scripts: Scripts) -> None:
    scripts.put("ci-1", "+label", "x", op="a1")
    scripts.put("ci-2", op="a2")
    now = scripts.now()
    for key in ("ci-1", "ci-2"):
        scripts.redis.hset(scripts.session(key), "lastSeenAt", now - 5_000)
    before = scripts.stored("ci-1")
    scripts.messages()

    reply = scripts.touch({"ci-1": now - 1_000, "ci-2": now - 2_000}, op="a3")

    assert reply == {"status": "ok", "now": reply["now"], "rev": 2, "touched": 2}
    assert scripts.stored("ci-1") == {**before, "lastSeenAt": str(now - 1_000), "lookedUpAt": str(now - 1_000)}
    assert scripts.redis.zrange(scripts.index, 0, -1, withscores=True) == [("ci-2", now - 2_000), ("ci-1", now - 1_000)]
    assert scripts.redis.hget(scripts.head, "id") == "a2"
    assert scripts.messages() == []


def test_never_goes_back(scripts: Scripts) -> None:
    scripts.put("ci-1")
    before = scripts.stored("ci-1")

    scripts.touch({"ci-1": int(before["lastSeenAt"]) - 1})
    scripts.touch({"ci-1": int(before["lastSeenAt"]) - 2})

    # Then it was looked up, before it was last seen
    assert scripts.stored("ci-1") == {**before, "lookedUpAt": str(int(before["lastSeenAt"]) - 1)}
    assert scripts.redis.zscore(scripts.index, "ci-1") == int(before["lastSeenAt"])


def test_a_time_in_the_future_counts_as_now(scripts: Scripts) -> None:
    scripts.put("ci-1")

    reply = scripts.touch({"ci-1": scripts.now() + 10 * DAY_MS})

    assert scripts.stored("ci-1")["lastSeenAt"] == str(reply["now"])
    assert int(scripts.stored("ci-1")["expiresAt"]) <= reply["now"] + DAY_MS


@pytest.mark.parametrize(("gain_ms", "moves"), [(5_000, False), (7_000, True)])
def test_follows_the_session_s_own_ttl(scripts: Scripts, gain_ms: int, moves: bool) -> None:
    # Given a session of a minute, on a store of a day
    now = scripts.now()
    scripts.put("ci-1", "+ttlSeconds", 60, op="a1")
    scripts.redis.hset(
        scripts.session("ci-1"), mapping={"lastSeenAt": now - 30_000, "expiresAt": now + 60_000 - gain_ms}
    )
    scripts.messages()

    scripts.touch({"ci-1": now}, op="a2")

    # Then it lives on for a minute, to a tenth
    expires_at = now + 60_000 if moves else now + 60_000 - gain_ms
    assert scripts.stored("ci-1")["expiresAt"] == str(expires_at)
    assert [message["sessions"] for message in scripts.messages()] == [[["ci-1", expires_at, now]]] * moves


@pytest.mark.parametrize("collected", [False, True])
def test_never_revives(scripts: Scripts, collected: bool) -> None:
    now = scripts.now()
    scripts.store("ci-1", lastSeenAt=now - 50, expiresAt=now)
    if collected:
        scripts.redis.delete(scripts.session("ci-1"))
    before = scripts.everything()

    reply = scripts.touch({"ci-1": now, "never": now})

    assert reply["touched"] == 0
    assert scripts.everything() == before
    assert scripts.messages() == []


def test_expiries_that_gain_more_than_a_tenth_are_published_together(scripts: Scripts) -> None:
    # Given three sessions, two of which would gain more than a tenth of the TTL
    for number in (1, 2, 3):
        scripts.put(f"ci-{number}", op=f"a{number}")
    now = scripts.now()
    for number, gain in ((1, DAY_MS // 2), (2, DAY_MS // 20), (3, DAY_MS // 9)):
        scripts.redis.hset(scripts.session(f"ci-{number}"), "expiresAt", now + DAY_MS - gain)
    scripts.messages()

    reply = scripts.touch({"ci-1": now, "ci-2": now, "gone": now, "ci-3": now + 5_000_000}, op="a4")

    # Then one revision carries both, and their own revisions stay
    seen = [int(scripts.stored(f"ci-{number}")["lastSeenAt"]) for number in (1, 2, 3)]
    assert scripts.messages() == [
        {
            "type": "expiry",
            "rev": 4,
            "id": "a4",
            "prev": "a3",
            "at": reply["now"],
            "wait": False,
            "sessions": [["ci-1", seen[0] + DAY_MS, seen[0]], ["ci-3", seen[2] + DAY_MS, seen[2]]],
        }
    ]
    assert reply["touched"] == 3
    assert reply["rev"] == 4
    assert scripts.stored("ci-1")["rev"] == "1"
    assert scripts.stored("ci-1")["expiresAt"] == str(seen[0] + DAY_MS)
    assert scripts.redis.pexpiretime(scripts.session("ci-1")) == seen[0] + DAY_MS + 10_000
    assert scripts.stored("ci-2")["expiresAt"] == str(now + DAY_MS - DAY_MS // 20)


def test_a_session_that_the_index_has_lost_is_put_back(scripts: Scripts) -> None:
    scripts.put("ci-1")
    scripts.redis.delete(scripts.index)

    scripts.touch({"ci-1": scripts.now()})

    assert scripts.redis.zrange(scripts.index, 0, -1) == ["ci-1"]


def test_two_hundred_sessions_in_one_run(scripts: Scripts) -> None:
    now = scripts.now()
    for number in range(200):
        scripts.store(f"ci-{number}", expiresAt=now + DAY_MS // 2)

    assert scripts.touch({f"ci-{number}": now for number in range(200)})["touched"] == 200
    [message] = scripts.messages()
    assert len(message["sessions"]) == 200


def test_a_head_lower_than_the_toucher_knows_makes_writers_wait(scripts: Scripts) -> None:
    scripts.stop_listening()
    scripts.put("ci-1")
    scripts.redis.hset(scripts.session("ci-1"), "expiresAt", scripts.now() + DAY_MS // 2)

    reply = scripts.touch({"ci-1": scripts.now()}, known=7, lease=5_000)

    assert scripts.redis.hget(scripts.head, "countableAt") == str(reply["now"] + 5_000)
