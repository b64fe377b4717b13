"""put.lua: set the state of one session."""

from __future__ import annotations

import pytest

from ..support.scripts import DAY_MS, LEASE_MS, Scripts, published


def test_creates_a_session_with_nothing_set(scripts: Scripts) -> None:
    # Given nothing, when a PUT without properties runs
    reply = scripts.put("ci-42", op="a1")

    # Then the hash holds what every session has, and no field for what is null, empty or 0
    now = reply["now"]
    assert scripts.stored() == {
        "rev": "1",
        "createdAt": str(now),
        "lastSeenAt": str(now),
        "expiresAt": str(now + DAY_MS),
        "modifiedAt": str(now),
    }
    assert scripts.redis.pttl(scripts.session("ci-42")) > DAY_MS
    assert scripts.redis.zrange(scripts.index, 0, -1, withscores=True) == [("ci-42", now)]
    assert scripts.redis.hgetall(scripts.head) == {
        "rev": "1",
        "layout": "2",
        "id": "a1",
        "maxTtl": str(DAY_MS),
        "keptUntil": str(now + 31 * DAY_MS),
        # The head was missing while this test listened, as after a loss.
        "countableAt": str(now + LEASE_MS),
    }
    # Then the reply and the one message carry the full state
    state = {
        "sessionKey": "ci-42",
        "rev": 1,
        "label": None,
        "scenario": None,
        "overrides": [],
        "globalDelayMs": 0,
        "globalDelayMaxMs": 0,
        "createdAt": now,
        "lastSeenAt": now,
        "expiresAt": now + DAY_MS,
    }
    assert reply == {
        "status": "ok",
        "now": now,
        "rev": 1,
        "targetRev": 1,
        "live": 0,
        "pending": 0,
        "expired": 0,
        "countableInMs": LEASE_MS,
        "epoch": "",
        "changed": True,
        "existed": False,
        "session": {**state, "ttlSeconds": None, "modifiedAt": now, "modifiedBy": None, "lookedUpAt": None},
    }
    assert scripts.messages() == [
        {"type": "set", "rev": 1, "id": "a1", "prev": "", "at": now, "wait": True, "session": state}
    ]


def test_sets_each_property_and_leaves_the_others(scripts: Scripts) -> None:
    # Given a session with every property set
    scripts.put(
        "ci-42",
        *("+label", 'Zürich "ü"\n\\', "+scenario", "scn_a", "+overrides", '["ovr_b","ovr_a"]'),
        *("+globalDelayMs", 10, "+globalDelayMaxMs", 120_000),
        op="a1",
    )
    before = scripts.stored()
    scripts.messages()

    # When one property is set and another cleared
    reply = scripts.put("ci-42", "+globalDelayMs", 11, "-scenario", "", op="a2")

    # Then those two differ, and the rest of the hash is as before
    expected = {**before, "rev": "2", "globalDelayMs": "11", "lastSeenAt": str(reply["now"])}
    expected["expiresAt"] = str(reply["now"] + DAY_MS)
    expected["modifiedAt"] = str(reply["now"])
    del expected["scenario"]
    assert scripts.stored() == expected
    assert expected["label"] == 'Zürich "ü"\n\\'
    assert expected["overrides"] == '["ovr_b","ovr_a"]'
    assert reply["existed"] is True
    [message] = scripts.messages()
    assert message["session"] == published(reply["session"])
    assert (message["rev"], message["id"], message["prev"]) == (2, "a2", "a1")
    assert message["session"]["overrides"] == ["ovr_b", "ovr_a"]


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        (("-label", ""), "label"),
        (("-scenario", ""), "scenario"),
        (("+overrides", "[]"), "overrides"),
        (("+globalDelayMs", 0), "globalDelayMs"),
        (("+globalDelayMaxMs", 0), "globalDelayMaxMs"),
        (("-ttlSeconds", ""), "ttlSeconds"),
    ],
)
def test_a_cleared_property_has_no_field(scripts: Scripts, patch: tuple[str | int, ...], field: str) -> None:
    scripts.store(label="x", scenario="scn_a", overrides='["ovr_a"]', globalDelayMs=1, globalDelayMaxMs=2)
    scripts.redis.hset(scripts.session("ci-42"), mapping={"ttlSeconds": 60, "modifiedBy": "x", "lookedUpAt": 5})
    before = scripts.stored()

    scripts.put("ci-42", *patch, actor="y")

    # Then only that one is gone
    assert set(before) - set(scripts.stored()) == {field}


def test_an_empty_label_is_not_null(scripts: Scripts) -> None:
    reply = scripts.put("ci-42", "+label", "")

    assert scripts.stored()["label"] == ""
    assert reply["session"]["label"] == ""


def test_a_put_that_changes_nothing_takes_no_revision_and_counts_as_seen(scripts: Scripts) -> None:
    # Given a session last seen an hour ago
    now = scripts.now()
    patch = ("+label", "x", "+scenario", "scn_a", "+overrides", '["ovr_a"]', "+globalDelayMs", 5)
    scripts.put("ci-42", *patch, op="a1")
    scripts.redis.hset(scripts.session("ci-42"), "lastSeenAt", now - 3_600_000)
    scripts.messages()
    before = scripts.stored()

    # When the same PUT runs again
    reply = scripts.put("ci-42", *patch, op="a2")

    # Then only lastSeenAt moves, in the hash and in the index, without a message
    assert scripts.stored() == {**before, "lastSeenAt": str(reply["now"])}
    assert scripts.redis.zscore(scripts.index, "ci-42") == reply["now"]
    assert scripts.redis.hget(scripts.head, "id") == "a1"
    assert scripts.messages() == []
    # Then the caller waits for the revision that set the state
    assert (reply["changed"], reply["rev"], reply["targetRev"]) == (False, 1, 1)
    assert reply["session"]["rev"] == 1
    assert reply["session"]["lastSeenAt"] == reply["now"]


@pytest.mark.parametrize("gain_ms", [DAY_MS // 10 - 60_000, DAY_MS // 10 + 60_000])
def test_a_repeated_put_moves_the_expiry_only_for_more_than_a_tenth_of_the_ttl(scripts: Scripts, gain_ms: int) -> None:
    # Given a session whose expiry is `gain_ms` before the one that a new PUT would have
    scripts.put("ci-42", "+label", "x", op="a1")
    expires_at = scripts.now() + DAY_MS - gain_ms
    scripts.redis.hset(scripts.session("ci-42"), "expiresAt", expires_at)
    scripts.messages()

    reply = scripts.put("ci-42", "+label", "x", op="a2", wait="0")

    if gain_ms < DAY_MS // 10:
        assert scripts.stored()["expiresAt"] == str(expires_at)
        assert scripts.messages() == []
        return
    # Then it moves, is published as an expiry under a revision of its own, and the session keeps its own
    moved = reply["now"] + DAY_MS
    assert scripts.stored()["expiresAt"] == str(moved)
    assert scripts.stored()["rev"] == "1"
    assert scripts.redis.pexpiretime(scripts.session("ci-42")) == moved + 10_000
    assert scripts.messages() == [
        {
            "type": "expiry",
            "rev": 2,
            "id": "a2",
            "prev": "a1",
            "at": reply["now"],
            "wait": False,
            "sessions": [["ci-42", moved, reply["now"]]],
        }
    ]
    # And a repeated PUT waits until the views have the new expiry
    again = scripts.put("ci-42", "+label", "x", op="a3", wait="0")
    for answer in (reply, again):
        assert (answer["changed"], answer["rev"], answer["targetRev"]) == (False, 2, 2)
    # until the session is changed
    changed = scripts.put("ci-42", "+label", "y", op="a4", wait="0")
    assert (changed["rev"], changed["targetRev"]) == (3, 3)
    assert "expiryRev" not in scripts.stored()


def test_a_repeated_put_waits_for_the_expiry_that_a_touch_has_moved(scripts: Scripts) -> None:
    now = scripts.now()
    scripts.put("ci-42", "+label", "x", op="a1")
    scripts.put("ci-43", op="b1")
    scripts.store(expiresAt=now + 60_000, label="x")
    scripts.touch({"ci-42": now})

    repeated = scripts.put("ci-42", "+label", "x", op="a2")

    assert scripts.stored()["expiryRev"] == "3"
    assert (repeated["rev"], repeated["targetRev"]) == (3, 3)
    # And where the head is behind it, history was lost
    scripts.redis.hset(scripts.head, mapping={"rev": 1, "layout": 2})
    lost = scripts.put("ci-42", "+label", "x", op="a3")
    assert (lost["rev"], lost["targetRev"]) == (3, 3)
    assert lost["countableInMs"] > 0


def test_the_expiry_never_moves_back(scripts: Scripts) -> None:
    # Given a session that a store with a long TTL has written
    scripts.put("ci-42", ttl=DAY_MS, op="a1")
    before = scripts.stored()["expiresAt"]

    # When one with a short TTL changes it
    scripts.put("ci-42", "+label", "x", ttl=1_000, op="a2")

    assert scripts.stored()["expiresAt"] == before
    assert scripts.redis.hget(scripts.head, "maxTtl") == str(DAY_MS)


@pytest.mark.parametrize("state", ["expired", "gone"])
def test_an_ended_session_leaves_nothing_to_the_next_of_its_key(scripts: Scripts, state: str) -> None:
    # Given a session that has expired, whether Redis has collected it or not
    now = scripts.now()
    scripts.store(
        createdAt=now - 10,
        lastSeenAt=now - 5,
        expiresAt=now - 1,
        label="old",
        scenario="scn_old",
        globalDelayMs=7,
        ttlSeconds=60,
        modifiedBy="old",
        lookedUpAt=now - 5,
    )
    if state == "gone":
        scripts.redis.delete(scripts.session("ci-42"))

    # When a PUT sets one property
    reply = scripts.put("ci-42", "+globalDelayMaxMs", 3)

    # Then there is a new session without a trace of the old one
    assert reply["existed"] is False
    assert scripts.stored() == {
        "rev": "1",
        "createdAt": str(reply["now"]),
        "lastSeenAt": str(reply["now"]),
        "expiresAt": str(reply["now"] + DAY_MS),
        "modifiedAt": str(reply["now"]),
        "globalDelayMaxMs": "3",
    }
    assert scripts.redis.zrange(scripts.index, 0, -1) == ["ci-42"]


@pytest.mark.parametrize(
    ("stored_rev", "if_match", "if_none_match", "holds"),
    [
        (None, "", "*", True),
        (None, "*", "", False),
        (None, ",1,", "", False),
        (7, "", "*", False),
        (7, "*", "", True),
        (7, ",7,", "", True),
        (7, ",5,7,9,", "", True),
        (7, ",77,", "", False),
        (7, ",,", "", False),
        (7, ",7,", "*", False),
    ],
)
def test_preconditions(
    scripts: Scripts, stored_rev: int | None, if_match: str, if_none_match: str, holds: bool
) -> None:
    if stored_rev is not None:
        scripts.store(rev=stored_rev)
        scripts.redis.hset(scripts.head, mapping={"rev": stored_rev, "layout": 2, "id": "a0", "maxTtl": DAY_MS})
    before = scripts.everything()

    reply = scripts.put("ci-42", "+label", "x", if_match=if_match, if_none_match=if_none_match)

    if holds:
        assert reply["status"] == "ok"
        return
    detail = "" if stored_rev is None else str(stored_rev)
    assert reply == {"status": "precondition_failed", "detail": detail}
    assert scripts.everything() == before
    assert scripts.messages() == []


@pytest.mark.parametrize(
    ("patch", "status", "detail"),
    [
        (("+overrides", '["ovr_a","ovr_b"]'), "ok", ""),
        (("+overrides", "[]"), "ok", ""),
        (("+overrides", '["ovr_a","ovr_draft"]'), "unknown_override", "ovr_draft"),
        (("+overrides", '["ovr_a","ovr_local"]'), "local_override", "ovr_local"),
        (("+scenario", "scn_a"), "ok", ""),
        (("-scenario", ""), "ok", ""),
        (("+scenario", "scn_draft"), "unknown_scenario", "scn_draft"),
        (("+label", "x", "+scenario", "scn_a", "+overrides", '["ovr_draft"]'), "unknown_override", "ovr_draft"),
    ],
)
def test_a_catalog_says_which_ids_there_are(scripts: Scripts, patch: tuple[str, ...], status: str, detail: str) -> None:
    # Given a catalog with two published mocks, a scenario and its local mock
    scripts.redis.hset(scripts.catalog, "hash", "1")
    scripts.redis.hset(f"{scripts.catalog}:mocks", mapping={"ovr_a": "A", "ovr_b": "B"})
    scripts.redis.hset(f"{scripts.catalog}:local", "ovr_local", "scn_a")
    scripts.redis.hset(f"{scripts.catalog}:scenarios", "scn_a", "{}")
    before = scripts.everything()

    reply = scripts.put("ci-42", *patch)

    if status == "ok":
        assert reply["status"] == "ok"
        return
    assert reply == {"status": status, "detail": detail}
    assert scripts.everything() == before
    assert scripts.messages() == []


def test_a_catalog_that_is_empty_has_no_ids(scripts: Scripts) -> None:
    scripts.redis.hset(scripts.catalog, "hash", "1")

    assert scripts.put("ci-42", "+overrides", '["ovr_a"]')["status"] == "unknown_override"
    assert scripts.put("ci-42", "+scenario", "scn_a")["status"] == "unknown_scenario"
    assert scripts.put("ci-42", "+label", "x")["status"] == "ok"


def test_without_a_catalog_every_id_will_do(scripts: Scripts) -> None:
    assert scripts.put("ci-42", "+overrides", '["ovr_a"]', "+scenario", "scn_a")["status"] == "ok"


class TestOwnTtl:
    """A session's own TTL, in seconds, in place of the store's."""

    def test_is_how_long_it_lives(self, scripts: Scripts) -> None:
        reply = scripts.put("ci-42", "+ttlSeconds", 3600, op="a1")

        assert scripts.stored()["ttlSeconds"] == "3600"
        assert reply["session"]["ttlSeconds"] == 3600
        assert reply["session"]["expiresAt"] == reply["now"] + 3_600_000
        # Then the index is pruned by the store's TTL, which is longer
        assert scripts.redis.hget(scripts.head, "maxTtl") == str(DAY_MS)
        [message] = scripts.messages()
        assert message["session"] == published(reply["session"])

    def test_a_new_one_takes_a_revision_and_moves_the_expiry_either_way(self, scripts: Scripts) -> None:
        scripts.put("ci-42", "+label", "x", op="a1")

        # When it is shortened, lengthened, and given back to the store
        steps: list[tuple[str, str | int, int]] = [
            ("+ttlSeconds", 60, 60_000),
            ("+ttlSeconds", 7200, 7_200_000),
            ("-ttlSeconds", "", DAY_MS),
        ]
        for number, (name, value, ttl_ms) in enumerate(steps, 2):
            reply = scripts.put("ci-42", name, value, op=f"a{number}")

            assert (reply["changed"], reply["rev"]) == (True, number)
            assert reply["session"]["expiresAt"] == reply["now"] + ttl_ms
            assert scripts.redis.pexpiretime(scripts.session("ci-42")) == reply["now"] + ttl_ms + 10_000
        assert [message["type"] for message in scripts.messages()] == ["set"] * 4

    def test_the_same_again_changes_nothing(self, scripts: Scripts) -> None:
        scripts.put("ci-42", "+ttlSeconds", 60, op="a1")
        scripts.messages()

        assert scripts.put("ci-42", "+ttlSeconds", 60, op="a2")["changed"] is False
        assert scripts.put("ci-42", op="a3")["changed"] is False
        assert scripts.messages() == []

    @pytest.mark.parametrize(("gain_ms", "moves"), [(5_000, False), (7_000, True)])
    def test_every_write_follows_it_to_a_tenth(self, scripts: Scripts, gain_ms: int, moves: bool) -> None:
        # Given a session of a minute that would gain less or more than a tenth of that
        scripts.put("ci-42", "+ttlSeconds", 60, op="a1")
        expires_at = scripts.now() + 60_000 - gain_ms
        scripts.redis.hset(scripts.session("ci-42"), "expiresAt", expires_at)
        scripts.messages()

        reply = scripts.put("ci-42", op="a2")

        assert [message["type"] for message in scripts.messages()] == ["expiry"] * moves
        assert reply["session"]["expiresAt"] == (reply["now"] + 60_000 if moves else expires_at)

    def test_another_change_keeps_it(self, scripts: Scripts) -> None:
        scripts.put("ci-42", "+ttlSeconds", 60, op="a1")

        reply = scripts.put("ci-42", "+label", "x", op="a2")

        assert reply["session"]["ttlSeconds"] == 60
        assert reply["session"]["expiresAt"] == reply["now"] + 60_000


class TestLastWriter:
    """modifiedAt and modifiedBy."""

    def test_is_that_of_the_last_write_with_a_revision(self, scripts: Scripts) -> None:
        first = scripts.put("ci-42", "+label", "x", op="a1", actor="Zürich (1f9b)")
        assert scripts.stored()["modifiedBy"] == "Zürich (1f9b)"
        scripts.redis.hset(scripts.session("ci-42"), "modifiedAt", 5)

        # When it is repeated by another, then nothing says so
        repeated = scripts.put("ci-42", "+label", "x", op="a2", actor="other")
        assert {name: repeated["session"][name] for name in ("modifiedAt", "modifiedBy")} == {
            "modifiedAt": 5,
            "modifiedBy": "Zürich (1f9b)",
        }

        # When a writer without a name changes it, then the old name is cleared
        changed = scripts.put("ci-42", "+label", "y", op="a3")
        assert (changed["session"]["modifiedAt"], changed["session"]["modifiedBy"]) == (changed["now"], None)
        assert "modifiedBy" not in scripts.stored()
        assert scripts.get("ci-42")["session"] == changed["session"]
        assert first["session"]["modifiedAt"] == first["now"]

    def test_a_move_of_the_expiry_alone_is_no_write_of_the_state(self, scripts: Scripts) -> None:
        scripts.put("ci-42", op="a1", actor="first")
        scripts.redis.hset(scripts.session("ci-42"), mapping={"expiresAt": scripts.now() + 5_000, "modifiedAt": 5})

        reply = scripts.put("ci-42", op="a2", actor="second")

        assert reply["rev"] == 2
        assert (reply["session"]["modifiedAt"], reply["session"]["modifiedBy"]) == (5, "first")

    @pytest.mark.parametrize("name", ["put", "activate", "deactivate", "reset"])
    def test_every_script_that_writes_says_who(self, scripts: Scripts, name: str) -> None:
        scripts.put("ci-42", "+overrides", '["ovr_a"]', actor="first")
        arguments = {
            "put": ("", "", "+label", "x"),
            "activate": ("ovr_b", 200),
            "deactivate": ("ovr_a",),
            "reset": ("",),
        }

        reply = scripts.write(name, "ci-42", *arguments[name], actor="second")

        assert reply["session"]["modifiedBy"] == scripts.stored()["modifiedBy"] == "second"


def test_a_write_leaves_when_a_proxy_looked_the_session_up(scripts: Scripts) -> None:
    scripts.put("ci-42", "+label", "x")
    scripts.touch({"ci-42": scripts.now() - 1_000})
    looked_up_at = int(scripts.stored()["lookedUpAt"])

    for patch in (("+label", "y"), ("-label", ""), ()):
        reply = scripts.put("ci-42", *patch)

        assert reply["session"]["lookedUpAt"] == looked_up_at == int(scripts.stored()["lookedUpAt"])
        assert reply["session"]["lastSeenAt"] == reply["now"]
