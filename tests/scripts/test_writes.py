"""What holds for every script that writes a session (lib/write.lua, lib/revision.lua, lib/lease.lua)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis

from ..support.scripts import DAY_MS, Scripts

Write = Callable[..., dict[str, Any]]

#: Each of them changes the session that `given` leaves, or creates it.
CHANGES: dict[str, Callable[[Scripts], Write]] = {
    "put": lambda scripts: lambda **common: scripts.put("ci-42", "+label", "new", **common),
    "activate": lambda scripts: lambda **common: scripts.activate("ci-42", "ovr_new", **common),
    "deactivate": lambda scripts: lambda **common: scripts.deactivate("ci-42", "ovr_a", **common),
    "reset": lambda scripts: lambda **common: scripts.reset("ci-42", **common),
    "delete": lambda scripts: lambda **common: scripts.delete("ci-42", **common),
}
#: Each of them changes nothing, and is run on a session that `given` leaves.
REPEATS: dict[str, Callable[[Scripts], Write]] = {
    "put": lambda scripts: lambda **common: scripts.put("ci-42", "+label", "x", **common),
    "activate": lambda scripts: lambda **common: scripts.activate("ci-42", "ovr_a", **common),
    "deactivate": lambda scripts: lambda **common: scripts.deactivate("ci-42", "ovr_off", **common),
    "delete": lambda scripts: lambda **common: scripts.delete("never", **common),
}

every_change = pytest.mark.parametrize("name", CHANGES)
every_repeat = pytest.mark.parametrize("name", REPEATS)


def given(scripts: Scripts) -> None:
    """A session at revision 2."""
    scripts.put("ci-42", "+label", "x", op="g1")
    scripts.activate("ci-42", "ovr_a", op="g2")
    scripts.messages()


@every_change
def test_an_environment_must_be_registered_where_the_project_has_any(scripts: Scripts, name: str) -> None:
    given(scripts)
    scripts.redis.sadd(scripts.environments, "production")
    before = scripts.everything()

    assert CHANGES[name](scripts)() == {"status": "unknown_environment", "detail": "staging"}
    assert scripts.everything() == before

    scripts.redis.sadd(scripts.environments, "staging")
    assert CHANGES[name](scripts)()["status"] == "ok"


@every_change
@pytest.mark.parametrize(("wait", "told"), [("1", True), ("0", False)])
def test_the_message_says_whether_a_writer_waits(scripts: Scripts, name: str, wait: str, told: bool) -> None:
    given(scripts)

    CHANGES[name](scripts)(wait=wait)

    [message] = scripts.messages()
    assert message["wait"] is told


@every_change
def test_the_chain_goes_on_from_the_head(scripts: Scripts, name: str) -> None:
    given(scripts)

    reply = CHANGES[name](scripts)(op='id with "quotes"')

    [message] = scripts.messages()
    assert (message["rev"], message["prev"], message["id"]) == (3, "g2", 'id with "quotes"')
    assert (reply["rev"], reply["targetRev"]) == (3, 3)
    assert scripts.redis.hmget(scripts.head, "rev", "id") == ["3", 'id with "quotes"']


@every_change
def test_large_numbers_are_exact(scripts: Scripts, name: str) -> None:
    # Given a revision and a time that a Lua number prints inexactly by default
    given(scripts)
    rev = 2**53 - 2
    scripts.redis.hset(scripts.head, mapping={"rev": rev, "layout": 2, "expiredLeases": 2**52 + 1})
    scripts.redis.hset(
        scripts.session("ci-42"), mapping={"rev": rev, "layout": 2, "expiresAt": 2**52 + 3, "createdAt": 2**51 + 1}
    )

    reply = CHANGES[name](scripts)()

    [message] = scripts.messages()
    assert (reply["rev"], reply["targetRev"], reply["expired"]) == (rev + 1, rev + 1, 2**52 + 1)
    assert message["rev"] == rev + 1
    assert scripts.redis.hget(scripts.head, "rev") == str(rev + 1)
    if name != "delete":
        assert message["session"]["expiresAt"] == 2**52 + 3
        assert reply["session"]["createdAt"] == 2**51 + 1
        assert scripts.stored()["rev"] == str(rev + 1)


class TestSettling:
    """Where leases may have been lost with the head, writers wait for a whole lease."""

    @pytest.fixture(autouse=True)
    def nobody_listens(self, scripts: Scripts) -> None:
        scripts.stop_listening()

    @every_change
    def test_a_head_lower_than_the_writer_knows(self, scripts: Scripts, name: str) -> None:
        given(scripts)

        reply = CHANGES[name](scripts)(known=3, lease=5_000)

        assert reply["countableInMs"] == 5_000
        assert scripts.redis.hget(scripts.head, "countableAt") == str(reply["now"] + 5_000)
        # Then the next writer, which knows nothing, waits as well
        assert 0 < scripts.put("other", lease=5_000)["countableInMs"] <= 5_000

    @every_repeat
    def test_a_write_that_changes_nothing_keeps_what_it_found(self, scripts: Scripts, name: str) -> None:
        given(scripts)

        reply = REPEATS[name](scripts)(known=3, lease=5_000)

        assert (reply["changed"], reply["countableInMs"]) == (False, 5_000)
        assert scripts.redis.hmget(scripts.head, "rev", "countableAt") == ["2", str(reply["now"] + 5_000)]

    @every_change
    def test_a_head_as_high_as_the_writer_knows(self, scripts: Scripts, name: str) -> None:
        given(scripts)

        assert CHANGES[name](scripts)(known=2)["countableInMs"] == 0
        assert scripts.redis.hget(scripts.head, "countableAt") is None

    @pytest.mark.parametrize("name", ["put", "activate", "delete"])
    def test_no_head_while_somebody_listens(self, scripts: Scripts, name: str) -> None:
        with scripts.redis.pubsub() as pubsub:
            pubsub.ssubscribe(scripts.changes)
            assert pubsub.get_sharded_message(timeout=10)["type"] == "ssubscribe"

            reply = CHANGES[name](scripts)(lease=5_000)

            assert reply["countableInMs"] == 5_000

    @pytest.mark.parametrize("name", ["put", "activate", "delete"])
    def test_no_head_and_nobody_listens(self, scripts: Scripts, name: str) -> None:
        assert CHANGES[name](scripts)(lease=5_000)["countableInMs"] == 0

    @every_change
    def test_a_head_behind_the_session_was_lost(self, scripts: Scripts, name: str) -> None:
        # Given a deleted head, and no listener
        given(scripts)
        scripts.redis.delete(scripts.head)

        reply = CHANGES[name](scripts)(lease=5_000)

        # Then revisions go on from the session's
        assert (reply["countableInMs"], reply["rev"], reply["targetRev"]) == (5_000, 3, 3)

    @every_change
    def test_a_loss_counts_once(self, scripts: Scripts, name: str) -> None:
        # Given a head whose loss a writer at revision 9 has found, and whose wait is over
        given(scripts)
        assert scripts.put("other", known=9, lease=5_000)["countableInMs"] == 5_000
        scripts.redis.hset(scripts.head, "countableAt", scripts.now())

        # When a writer knew fewer of the lost revisions, then no writer waits again
        assert CHANGES[name](scripts)(known=8, lease=5_000)["countableInMs"] == 0

    @every_repeat
    def test_one_who_knew_more_meanwhile_finds_the_same_loss(self, scripts: Scripts, name: str) -> None:
        given(scripts)
        countable_at = scripts.now() + 40_000
        scripts.redis.hset(scripts.head, mapping={"lostRev": 9, "countableAt": countable_at})

        assert 0 < REPEATS[name](scripts)(known=10, lease=50_000)["countableInMs"] <= 40_000
        assert scripts.redis.hmget(scripts.head, "lostRev", "countableAt") == ["10", str(countable_at)]

    @every_repeat
    def test_one_who_knew_more_later_finds_another_loss(self, scripts: Scripts, name: str) -> None:
        given(scripts)
        scripts.redis.hset(scripts.head, "lostRev", 9)

        assert REPEATS[name](scripts)(known=9, lease=5_000)["countableInMs"] == 0
        assert REPEATS[name](scripts)(known=10, lease=5_000)["countableInMs"] == 5_000
        assert scripts.redis.hget(scripts.head, "lostRev") == "10"

    @every_repeat
    @pytest.mark.parametrize("ahead", [25_000, 10**15], ids=str)
    def test_never_lasts_longer_than_a_lease(self, scripts: Scripts, name: str, ahead: int) -> None:
        # Given a server whose clock was set back after a loss, or a foreign value
        given(scripts)
        scripts.redis.hset(scripts.head, "countableAt", scripts.now() + ahead)

        reply = REPEATS[name](scripts)(lease=5_000)

        # Then the writer waits for one lease, and a later writer not for another
        assert reply["countableInMs"] == 5_000
        assert scripts.redis.hget(scripts.head, "countableAt") == str(reply["now"] + 5_000)
        later = REPEATS[name](scripts)(lease=5_000)
        assert later["now"] + later["countableInMs"] == reply["now"] + 5_000

    def test_the_time_passes(self, scripts: Scripts) -> None:
        given(scripts)
        scripts.redis.hset(scripts.head, "countableAt", scripts.now())

        assert scripts.put("ci-42", "+label", "y")["countableInMs"] == 0


@every_change
def test_behind_a_lost_head_the_chain_begins_anew(scripts: Scripts, name: str) -> None:
    given(scripts)
    scripts.messages()
    scripts.redis.delete(scripts.head)

    CHANGES[name](scripts)()

    [message] = scripts.messages()
    assert (message["rev"], message["prev"]) == (3, "")


class TestLeases:
    """A write counts the leases that live, and those of them that have not applied what it waits for."""

    @every_change
    def test_every_lease_is_behind_a_new_revision(self, scripts: Scripts, name: str) -> None:
        given(scripts)
        later = scripts.now() + 60_000
        scripts.redis.zadd(scripts.leases, {"l1": later, "l2": later})
        scripts.redis.zadd(scripts.acks, {"l1": 2, "l2": 1})

        reply = CHANGES[name](scripts)()

        assert (reply["live"], reply["pending"], reply["expired"]) == (2, 2, 0)

    @every_repeat
    def test_a_repeated_write_waits_for_the_revision_that_set_its_state(self, scripts: Scripts, name: str) -> None:
        given(scripts)
        later = scripts.now() + 60_000
        scripts.redis.zadd(scripts.leases, {"l1": later, "l2": later, "l3": later})
        scripts.redis.zadd(scripts.acks, {"l1": 2, "l2": 1, "l3": 3})

        reply = REPEATS[name](scripts)()

        assert (reply["targetRev"], reply["live"], reply["pending"]) == (2, 3, 1)

    @every_change
    def test_leases_that_have_run_out_are_dropped_and_counted(self, scripts: Scripts, name: str) -> None:
        given(scripts)
        now = scripts.now()
        scripts.redis.hset(scripts.head, "expiredLeases", 4)
        scripts.redis.zadd(scripts.leases, {"dead": now, "live": now + 60_000})
        scripts.redis.zadd(scripts.acks, {"dead": 1, "live": 2})
        scripts.redis.hset(scripts.views, mapping={"dead": "{}", "dead:head": 1, "live": "{}"})

        reply = CHANGES[name](scripts)()

        assert (reply["live"], reply["pending"], reply["expired"]) == (1, 1, 5)
        assert scripts.redis.hget(scripts.head, "expiredLeases") == "5"
        assert scripts.redis.zrange(scripts.leases, 0, -1) == ["live"]
        assert scripts.redis.zrange(scripts.acks, 0, -1) == ["live"]
        assert scripts.redis.hgetall(scripts.views) == {"live": "{}"}


class TestIndex:
    """Each write that adds a member or removes one, and each touch, drops two members that are certainly gone."""

    @pytest.mark.parametrize("name", ["put", "activate", "delete", "touch"])
    def test_two_at_a_time_the_oldest_first(self, scripts: Scripts, name: str) -> None:
        given(scripts)
        now = scripts.now()
        scripts.redis.zadd(scripts.index, {f"old-{n}": now - DAY_MS - 60_000 + n for n in range(5)})
        scripts.redis.zadd(scripts.index, {"idle": now - DAY_MS + 60_000})

        match name:
            case "put":
                scripts.put("new")
            case "activate":
                scripts.activate("new", "ovr_a")
            case "delete":
                scripts.delete("ci-42")
            case _:
                scripts.touch({"ci-42": now})

        added = {"put": ["ci-42", "new"], "activate": ["ci-42", "new"], "delete": [], "touch": ["ci-42"]}
        assert scripts.redis.zrange(scripts.index, 0, -1) == ["old-2", "old-3", "old-4", "idle", *added[name]]

    @pytest.mark.parametrize("name", [name for name in CHANGES if name != "delete"])
    def test_a_change_of_a_session_that_is_there_drops_none(self, scripts: Scripts, name: str) -> None:
        given(scripts)
        scripts.redis.zadd(scripts.index, {"old": scripts.now() - DAY_MS - 60_000})

        CHANGES[name](scripts)()

        assert scripts.redis.zrange(scripts.index, 0, -1) == ["old", "ci-42"]

    def test_a_longer_ttl_of_another_writer_counts(self, scripts: Scripts) -> None:
        scripts.put("long", ttl=10 * DAY_MS)
        scripts.redis.zadd(scripts.index, {"long": scripts.now() - 9 * DAY_MS})

        scripts.put("ci-42", ttl=DAY_MS)

        assert "long" in scripts.redis.zrange(scripts.index, 0, -1)

    def test_a_lost_head_costs_no_member_that_lives(self, scripts: Scripts) -> None:
        given(scripts)
        scripts.put("other")
        scripts.redis.delete(scripts.head)

        scripts.put("ci-42", "+label", "x")

        assert sorted(scripts.redis.zrange(scripts.index, 0, -1)) == ["ci-42", "other"]


CORRUPT = [
    *((field, value) for field in ("rev", "expiresAt", "lastSeenAt", "createdAt") for value in ("", "x", "-1", "1.5")),
    *((field, None) for field in ("rev", "expiresAt", "lastSeenAt", "createdAt")),
    ("expiresAt", "inf"),
    ("rev", "nan"),
    ("globalDelayMs", "x"),
    ("globalDelayMaxMs", "1e999"),
    ("overrides", ""),
    ("overrides", "x"),
    ("overrides", '{"a":1}'),
    ("overrides", '["ovr_a"'),
    ("overrides", '["ovr_a""ovr_b"]'),
    ("overrides", "[1]"),
    ("overrides", '["ovr_a"],"x":["y"]'),
    ("overrides", '["ovr_a"],"ovr_b"'),
    ("overrides", '["ovr_a"["ovr_b"]'),
    ("overrides", '["ovr_a",]'),
    ("overrides", ',"ovr_a"]'),
    ("overrides", '["ovr_"ovr_a",b"]'),
]


def snapshot(scripts: Scripts) -> dict[str, Any]:
    """Read one session as a view does."""
    return scripts.run("snapshot", [scripts.head, scripts.index, scripts.session("ci-42")], ["0", 0, "ci-42"])


class TestCorruption:
    """What this library did not write is reported, and not saved over."""

    @pytest.mark.parametrize(("field", "value"), CORRUPT)
    def test_a_session_that_is_none(self, scripts: Scripts, field: str, value: str | None) -> None:
        given(scripts)
        if value is None:
            scripts.redis.hdel(scripts.session("ci-42"), field)
        else:
            scripts.redis.hset(scripts.session("ci-42"), field, value)
        before = scripts.everything()

        self.assert_corrupt(scripts)
        assert scripts.everything() == before
        assert scripts.messages() == []

    def test_a_session_of_another_type(self, scripts: Scripts) -> None:
        given(scripts)
        scripts.redis.delete(scripts.session("ci-42"))
        scripts.redis.set(scripts.session("ci-42"), "no hash")
        before = scripts.everything()

        self.assert_corrupt(scripts)
        assert scripts.everything() == before
        assert scripts.messages() == []

    def assert_corrupt(self, scripts: Scripts) -> None:
        """Check that each script reports the session, or passes over it."""
        corrupt = {"status": "corrupt_session", "detail": "ci-42"}
        for name, change in CHANGES.items():
            if name != "delete":
                assert change(scripts)() == corrupt
        assert scripts.delete("ci-42", if_match=",2,") == corrupt
        assert scripts.delete("ci-42", if_match="*") == corrupt
        assert scripts.get("ci-42") == corrupt
        assert scripts.touch({"ci-42": scripts.now()})["touched"] == 0
        reply = scripts.run("read", [scripts.session("ci-42")], ["ci-42"])
        assert (reply["sessions"], reply["corrupt"]) == ([], ["ci-42"])
        reply = snapshot(scripts)
        assert (reply["sessions"], reply["corrupt"]) == ([], ["ci-42"])

    @pytest.mark.parametrize("another_type", [False, True])
    def test_a_deletion_removes_it(self, scripts: Scripts, another_type: bool) -> None:
        given(scripts)
        if another_type:
            scripts.redis.delete(scripts.session("ci-42"))
            scripts.redis.set(scripts.session("ci-42"), "no hash")
        else:
            scripts.redis.hset(scripts.session("ci-42"), "rev", "nan")

        reply = scripts.delete("ci-42")

        assert (reply["changed"], reply["existed"], reply["targetRev"]) == (True, True, 3)
        assert [message["type"] for message in scripts.messages()] == ["delete"]
        assert not scripts.redis.exists(scripts.session("ci-42"))
        assert scripts.redis.zcard(scripts.index) == 0

    @pytest.mark.parametrize(
        ("text", "valid"),
        [
            (b"", True),
            ("a\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff".encode(), True),
            (b"\x80", False),
            (b"\xc0\xaf", False),
            (b"\xc1\xbf", False),
            (b"\xc3", False),
            (b"\xc3a\xa9", False),
            (b"\xe0\x9f\xbf", False),
            (b"\xe2\x82", False),
            (b"\xed\xa0\x80", False),
            (b"\xf0\x8f\xbf\xbf", False),
            (b"\xf0\x9f\x94", False),
            (b"\xf4\x90\x80\x80", False),
            (b"\xf5\x80\x80\x80", False),
            (b"\xc3\xc3\xa9\xa9", False),
        ],
    )
    def test_text_must_be_utf8(self, scripts: Scripts, text: bytes, valid: bool) -> None:
        given(scripts)
        scripts.redis.hset(scripts.session("ci-42"), "label", text)

        reply = scripts.get("ci-42")

        assert reply["status"] == ("ok" if valid else "corrupt_session")
        assert snapshot(scripts)["corrupt"] == ([] if valid else ["ci-42"])
        if text and valid:
            assert reply["session"]["label"].encode() == text

    @every_change
    @pytest.mark.parametrize("field", ["rev", "maxTtl", "expiredLeases", "countableAt", "lostRev"])
    def test_a_head_that_is_none(self, scripts: Scripts, name: str, field: str) -> None:
        given(scripts)
        scripts.redis.hset(scripts.head, field, "x")
        before = scripts.everything()

        with pytest.raises(redis.ResponseError, match="SSCORRUPT"):
            CHANGES[name](scripts)()
        assert scripts.everything() == before

    @pytest.mark.parametrize(
        ("name", "part"),
        [
            *(
                (name, part)
                for name in CHANGES
                for part in ("index", "head", "leases", "acks", "views", "environments")
            ),
            *((name, "catalog") for name in ("activate", "deactivate")),
            *(("touch", part) for part in ("index", "head")),
        ],
    )
    def test_a_key_of_another_type(self, scripts: Scripts, name: str, part: str) -> None:
        # Given a live lease and an expired one, so that the script reads every key
        given(scripts)
        now = scripts.now()
        scripts.redis.zadd(scripts.leases, {"dead": now, "live": now + 60_000})
        scripts.redis.zadd(scripts.acks, {"dead": 1, "live": 1})
        scripts.redis.hset(scripts.views, "dead", "{}")
        scripts.redis.sadd(scripts.environments, "staging")
        key = {
            "index": scripts.index,
            "head": scripts.head,
            "leases": scripts.leases,
            "acks": scripts.acks,
            "views": scripts.views,
            "environments": scripts.environments,
            "catalog": f"{scripts.catalog}:mocks",
        }[part]
        if part == "catalog":
            scripts.redis.hset(scripts.catalog, "hash", "1")
        scripts.redis.delete(key)
        scripts.redis.set(key, "not what it should be")
        before = scripts.everything()

        # When a write runs, then it fails before it has written anything
        write = partial(scripts.touch, {"ci-42": now}) if name == "touch" else CHANGES[name](scripts)
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            write()
        assert scripts.everything() == before
        assert scripts.messages() == []
