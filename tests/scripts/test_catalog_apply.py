"""catalog_apply.lua: give an environment its catalog, and take what it no longer offers out of every session."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from ..support.scripts import LEASE_MS, Scripts, published

OLD: dict[str, Any] = {
    "mocks": {"ovr_a": "A", "ovr_b": "B"},
    "scenarios": {"scn_x": {"ovr_own": "Own"}, "scn_y": {}},
}
"""Published mocks by id, and scenarios with their local mocks."""


def apply(
    scripts: Scripts,
    catalog: dict[str, Any] | None,
    *sessions: str,
    op: str = "op",
    known: int = 0,
    wait: str = "1",
    environment: str = "staging",
    actor: str = "",
) -> dict[str, Any]:
    catalog_keys = [scripts.catalog + part for part in ("", ":mocks", ":local", ":scenarios")]
    keys = [scripts.environments, *catalog_keys, scripts.index, scripts.head]
    keys += [
        scripts.leases,
        scripts.acks,
        scripts.views,
        scripts.changes,
        scripts.usage,
        scripts.ledger,
        *map(scripts.session, sessions),
    ]
    text = "" if catalog is None else document(catalog)
    mocks = {} if catalog is None else catalog["mocks"]
    scenarios = {} if catalog is None else catalog["scenarios"]
    local = {id_: scenario for scenario, own in scenarios.items() for id_ in own}
    args: list[str | int] = [op, LEASE_MS, known, wait, environment, actor, digest(text), text]
    args += [len(mocks), len(local), len(scenarios)]
    scenario_json: dict[str, str] = {id_: json.dumps({"id": id_}) for id_ in scenarios}
    for entries in (mocks, local, scenario_json):
        args += [part for pair in entries.items() for part in pair]
    return scripts.run("catalog_apply", keys, [*args, *sessions])


def document(catalog: dict[str, Any]) -> str:
    """What is published: any JSON will do for the script."""
    return json.dumps({"mocks": list(catalog["mocks"]), "scenarios": list(catalog["scenarios"])})


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def without(*ids: str) -> dict[str, Any]:
    """The catalog without these mocks and scenarios."""
    return {kind: {id_: value for id_, value in entries.items() if id_ not in ids} for kind, entries in OLD.items()}


def test_registers_the_environment_and_writes_the_catalog(scripts: Scripts) -> None:
    # Given nothing, when a catalog is applied
    reply = apply(scripts, OLD, op="a1")

    # Then everything that other scripts check ids by is there
    now = reply["now"]
    assert scripts.redis.smembers(scripts.environments) == {"staging"}
    assert scripts.redis.hgetall(scripts.catalog) == {
        "digest": digest(document(OLD)),
        "json": document(OLD),
        "appliedAt": str(now),
    }
    assert scripts.redis.hgetall(scripts.catalog + ":mocks") == {"ovr_a": "A", "ovr_b": "B"}
    assert scripts.redis.hgetall(scripts.catalog + ":local") == {"ovr_own": "scn_x"}
    assert scripts.redis.hgetall(scripts.catalog + ":scenarios") == {
        "scn_x": '{"id": "scn_x"}',
        "scn_y": '{"id": "scn_y"}',
    }
    assert scripts.redis.hgetall(scripts.head) == {
        "rev": "1",
        "layout": "2",
        "id": "a1.1",
        "catalogRev": "1",
        "keptUntil": str(2**53),
        # The head was missing while this test listened, as after a loss.
        "countableAt": str(now + LEASE_MS),
    }
    # Then the reply and the one message say so
    assert reply == {
        **reply,
        "status": "ok",
        "rev": 1,
        "targetRev": 1,
        "live": 0,
        "pending": 0,
        "expired": 0,
        "countableInMs": LEASE_MS,
        "changed": True,
        "existed": False,
        "session": None,
        "previous": None,
        "sessions": 0,
    }
    assert scripts.messages() == [
        {
            "type": "catalog",
            "rev": 1,
            "id": "a1.1",
            "prev": "",
            "at": now,
            "wait": True,
            "catalog": json.loads(document(OLD)),
        }
    ]


def test_the_same_catalog_changes_nothing_and_waits_for_the_revision_that_set_it(scripts: Scripts) -> None:
    # Given a catalog, and a later write
    apply(scripts, OLD)
    scripts.put("ci-42", "+overrides", '["ovr_a"]')
    scripts.messages()
    before = scripts.everything()

    # When it is applied again, then there is no revision and no message
    reply = apply(scripts, OLD, op="again")
    assert (reply["changed"], reply["existed"], reply["previous"]) == (False, True, None)
    assert (reply["rev"], reply["targetRev"]) == (2, 1)
    assert scripts.everything() == before
    assert scripts.messages() == []


def test_what_the_old_catalog_had_more_is_gone(scripts: Scripts) -> None:
    # Given a catalog, when one with less is applied and there is no session
    apply(scripts, OLD)
    reply = apply(scripts, {"mocks": {"ovr_b": "New name"}, "scenarios": {}})

    # Then nothing of the old one is left, and the reply shows what was
    assert reply["previous"] == json.loads(document(OLD))
    assert scripts.redis.hgetall(scripts.catalog + ":mocks") == {"ovr_b": "New name"}
    assert not scripts.redis.exists(scripts.catalog + ":local", scripts.catalog + ":scenarios")


def test_only_more_on_offer_needs_no_session(scripts: Scripts) -> None:
    # Given a session on a catalog, when the new one has all of it and more
    apply(scripts, without("ovr_b"))
    scripts.put("ci-42", "+overrides", '["ovr_a"]')
    before = scripts.stored()
    reply = apply(scripts, OLD)

    # Then the session is not looked at
    assert (reply["status"], reply["sessions"]) == ("ok", 0)
    assert scripts.stored() == before


@pytest.mark.parametrize("gone", ["ovr_b", "scn_x"])
def test_asks_for_the_sessions_where_less_is_on_offer(scripts: Scripts, gone: str) -> None:
    # Given two sessions on a catalog
    apply(scripts, OLD)
    scripts.put("one")
    scripts.put('tw"o')
    scripts.messages()
    before = scripts.everything()

    # When less is on offer and they are not named, then all are missing and nothing changes
    reply = apply(scripts, without(gone))
    assert sorted(reply.pop("missing")) == ["one", 'tw"o']
    assert reply == {"status": "need_sessions", "more": False}
    # When one is named, then the other one is missing
    assert apply(scripts, without(gone), "one")["missing"] == ['tw"o']
    assert scripts.everything() == before
    assert scripts.messages() == []
    # When both are, then it is applied; a session that was deleted meanwhile may be among them
    assert apply(scripts, without(gone), 'tw"o', "gone", "one")["status"] == "ok"


def test_one_answer_asks_for_a_thousand_sessions(scripts: Scripts) -> None:
    apply(scripts, OLD)
    scripts.redis.zadd(scripts.index, {f"s{n}": n for n in range(1000)})
    reply = apply(scripts, without("ovr_b"))
    assert (len(set(reply["missing"])), reply["more"]) == (1000, False)
    scripts.redis.zadd(scripts.index, {"one more": 1})
    reply = apply(scripts, without("ovr_b"))
    assert (len(set(reply["missing"])), reply["more"]) == (1000, True)


def test_deactivates_what_is_no_longer_offered_with_a_revision_for_each_session(scripts: Scripts) -> None:
    # Given sessions that use a mock, a scenario, both or neither of what goes
    apply(scripts, OLD)
    scripts.put(
        "mock", "+overrides", '["ovr_a","ovr_b"]', "+label", "kept", "+globalDelayMs", 5, "+ttlSeconds", 60, ttl=60_000
    )
    scripts.put("scenario", "+scenario", "scn_x", "+overrides", '["ovr_a"]')
    scripts.put("both", "+scenario", "scn_x", "+overrides", '["ovr_b"]', op="last")
    scripts.put("neither", "+scenario", "scn_y", "+overrides", '["ovr_a"]', op="last")
    scripts.messages()
    before = {key: scripts.stored(key) for key in ("mock", "scenario", "both", "neither")}
    index = scripts.redis.zrange(scripts.index, 0, -1, withscores=True)

    # When the mock and the scenario go
    reply = apply(scripts, without("ovr_b", "scn_x"), "neither", "both", "scenario", "mock", op="u1", actor="author")

    # Then only those are off, and neither expiry nor lastSeenAt has moved
    after = {key: scripts.stored(key) for key in before}
    assert after["neither"] == before["neither"]
    modified = {"modifiedAt": str(reply["now"]), "modifiedBy": "author"}
    assert after["mock"] == {**before["mock"], **modified, "overrides": '["ovr_a"]', "rev": "8"}
    del before["scenario"]["scenario"]
    assert after["scenario"] == {**before["scenario"], **modified, "rev": "7"}
    del before["both"]["scenario"], before["both"]["overrides"]
    assert after["both"] == {**before["both"], **modified, "rev": "6"}
    assert scripts.redis.zrange(scripts.index, 0, -1, withscores=True) == index
    # Then the chain has a link for each, in order, and then the catalog
    messages = scripts.messages()
    assert [(m["type"], m["rev"], m["id"], m["prev"], m["wait"]) for m in messages] == [
        ("set", 6, "u1.1", "last", False),
        ("set", 7, "u1.2", "u1.1", False),
        ("set", 8, "u1.3", "u1.2", False),
        ("catalog", 9, "u1.4", "u1.3", True),
    ]
    assert [m["session"] for m in messages[:3]] == [
        published(scripts.get(key)["session"]) for key in ("both", "scenario", "mock")
    ]
    assert (reply["sessions"], reply["rev"], reply["targetRev"]) == (3, 9, 9)
    assert scripts.redis.hget(scripts.head, "catalogRev") == "9"


def test_a_mock_that_becomes_scenario_local_is_deactivated(scripts: Scripts) -> None:
    apply(scripts, OLD)
    scripts.put("ci-42", "+overrides", '["ovr_b"]')
    now_local = {"mocks": {"ovr_a": "A"}, "scenarios": {"scn_x": {"ovr_b": "B"}, "scn_y": {}}}
    assert apply(scripts, now_local, "ci-42")["sessions"] == 1
    assert "overrides" not in scripts.stored()


def test_the_first_catalog_looks_at_sessions_that_took_any_id(scripts: Scripts) -> None:
    # Given a session from before there was a catalog
    scripts.put("ci-42", "+scenario", "scn_any", "+overrides", '["ovr_any","ovr_a"]')

    # When the first one is applied, then what it does not offer goes
    assert apply(scripts, OLD)["missing"] == ["ci-42"]
    assert apply(scripts, OLD, "ci-42")["sessions"] == 1
    assert scripts.stored()["overrides"] == '["ovr_a"]'
    assert "scenario" not in scripts.stored()


def test_an_expired_session_is_left_as_it_is(scripts: Scripts) -> None:
    # Given a session that has expired and is not collected yet
    apply(scripts, OLD)
    scripts.store("ci-42", overrides='["ovr_b"]', expiresAt=scripts.now() - 1)
    before = scripts.stored()
    assert apply(scripts, without("ovr_b"), "ci-42")["sessions"] == 0
    assert scripts.stored() == before


def test_takes_catalog_and_registration_away(scripts: Scripts) -> None:
    # Given two registered environments, and a session on this one
    apply(scripts, OLD)
    scripts.redis.sadd(scripts.environments, "qa")
    scripts.put("ci-42", "+scenario", "scn_x", "+overrides", '["ovr_a"]')
    scripts.messages()

    # When its catalog is taken away
    reply = apply(scripts, None, "ci-42", op="gone")

    # Then nothing of it is left, and nothing is on in the session
    assert scripts.redis.smembers(scripts.environments) == {"qa"}
    assert not [key for key in scripts.everything() if ":catalog" in key]
    assert not {"scenario", "overrides"} & set(scripts.stored())
    assert (reply["previous"], reply["sessions"]) == (json.loads(document(OLD)), 1)
    assert [(m["type"], m.get("catalog", "")) for m in scripts.messages()] == [("set", ""), ("catalog", None)]
    # When it is taken away again, then nothing changes
    assert apply(scripts, None, "ci-42")["changed"] is False
    assert scripts.messages() == []


def test_waits_for_the_leases_that_have_not_applied_the_last_revision(scripts: Scripts) -> None:
    # Given three leases: an expired one, one ahead, and one behind
    now = scripts.now()
    scripts.redis.zadd(scripts.leases, {"out": now - 1, "ahead": now + LEASE_MS, "behind": now + LEASE_MS})
    scripts.redis.zadd(scripts.acks, {"out": 0, "ahead": 1, "behind": 0})

    reply = apply(scripts, OLD)
    assert (reply["live"], reply["pending"], reply["expired"]) == (2, 1, 1)


def test_a_head_behind_what_is_known_makes_the_writer_wait_for_a_lease(scripts: Scripts) -> None:
    # Given a session whose revision the head has lost
    apply(scripts, OLD)
    scripts.store("ci-42", overrides='["ovr_b"]', rev=40)

    # When the session is changed, then its revision goes up, and the leases are not counted on
    reply = apply(scripts, without("ovr_b"), "ci-42")
    assert scripts.stored()["rev"] == "41"
    assert (reply["rev"], reply["countableInMs"]) == (42, LEASE_MS)
    assert scripts.redis.hget(scripts.head, "countableAt") == str(reply["now"] + LEASE_MS)
    # When the writer knows a later revision, then nothing that it repeats is relied on either
    scripts.redis.hset(scripts.head, "countableAt", reply["now"])
    assert apply(scripts, without("ovr_b"), known=50)["countableInMs"] == LEASE_MS


def test_a_corrupt_session_is_passed_over(scripts: Scripts) -> None:
    apply(scripts, OLD)
    scripts.store("fine", overrides='["ovr_b"]')
    corrupt = scripts.store("ci-42", overrides='["ovr_b"]', rev="x")
    scripts.redis.set(scripts.session("other"), "no hash")
    scripts.redis.zadd(scripts.index, {"other": 1})

    reply = apply(scripts, without("ovr_b"), "fine", "ci-42", "other")

    assert reply["sessions"] == 1
    assert "overrides" not in scripts.stored("fine")
    assert scripts.stored("ci-42") == corrupt
    assert scripts.redis.get(scripts.session("other")) == "no hash"


@pytest.mark.parametrize("part", ["", ":mocks", ":local", ":scenarios"])
def test_a_key_of_another_type_stops_it_before_anything_is_written(scripts: Scripts, part: str) -> None:
    scripts.put("ci-42", "+overrides", '["ovr_old"]')
    scripts.redis.set(scripts.catalog + part, "something else")
    before = scripts.everything()
    with pytest.raises(Exception, match="WRONGTYPE"):
        apply(scripts, OLD, "ci-42")
    assert scripts.everything() == before
