"""activate.lua: switch one override on."""

from __future__ import annotations

import pytest

from ..support.scripts import DAY_MS, Scripts, published


def test_creates_the_session(scripts: Scripts) -> None:
    reply = scripts.activate("ci-42", "ovr_a", op="a1")

    assert scripts.stored()["overrides"] == '["ovr_a"]'
    assert (reply["changed"], reply["existed"], reply["session"]["overrides"]) == (True, False, ["ovr_a"])
    [message] = scripts.messages()
    assert message == {
        "type": "set",
        "rev": 1,
        "id": "a1",
        "prev": "",
        "at": reply["now"],
        "wait": True,
        "session": published(reply["session"]),
    }


def test_adds_at_the_end_and_keeps_the_rest(scripts: Scripts) -> None:
    scripts.put("ci-42", "+label", "x", "+scenario", "scn_a", "+overrides", '["ovr_b"]', op="a1")

    reply = scripts.activate("ci-42", "ovr_a", op="a2")

    assert scripts.stored()["overrides"] == '["ovr_b","ovr_a"]'
    assert reply["session"]["label"] == "x"
    assert reply["session"]["scenario"] == "scn_a"
    assert reply["session"]["rev"] == 2


def test_an_override_that_is_on_stays_on(scripts: Scripts) -> None:
    scripts.put("ci-42", "+overrides", '["ovr_b","ovr_a"]', op="a1")
    scripts.redis.hset(scripts.session("ci-42"), "lastSeenAt", 5)
    scripts.messages()

    reply = scripts.activate("ci-42", "ovr_b", op="a2")

    assert (reply["changed"], reply["rev"], reply["targetRev"]) == (False, 1, 1)
    assert reply["session"]["overrides"] == ["ovr_b", "ovr_a"]
    assert scripts.stored()["lastSeenAt"] == str(reply["now"])
    assert scripts.messages() == []


def test_an_id_that_is_part_of_another_is_its_own(scripts: Scripts) -> None:
    scripts.put("ci-42", "+overrides", '["ovr_abc"]')

    assert scripts.activate("ci-42", "ovr_ab")["session"]["overrides"] == ["ovr_abc", "ovr_ab"]


def test_a_session_takes_as_many_as_the_bound(scripts: Scripts) -> None:
    scripts.put("ci-42", "+overrides", '["ovr_a","ovr_b"]')

    assert scripts.activate("ci-42", "ovr_c", bound=3)["status"] == "ok"
    before = scripts.everything()
    assert scripts.activate("ci-42", "ovr_d", bound=3) == {"status": "too_many_overrides", "detail": "ovr_d"}
    assert scripts.everything() == before
    # Then an override that is on already does not count as another
    assert scripts.activate("ci-42", "ovr_c", bound=3)["status"] == "ok"


def test_an_ended_session_is_not_added_to(scripts: Scripts) -> None:
    scripts.store(expiresAt=scripts.now(), overrides='["ovr_old"]', label="old")

    reply = scripts.activate("ci-42", "ovr_a")

    assert reply["existed"] is False
    assert scripts.stored() == {
        "rev": "1",
        "createdAt": str(reply["now"]),
        "lastSeenAt": str(reply["now"]),
        "expiresAt": str(reply["now"] + DAY_MS),
        "modifiedAt": str(reply["now"]),
        "overrides": '["ovr_a"]',
    }


@pytest.mark.parametrize(
    ("override", "status"),
    [("ovr_a", "ok"), ("ovr_draft", "unknown_override"), ("ovr_local", "local_override")],
)
@pytest.mark.parametrize("script", ["activate", "deactivate"])
def test_a_catalog_says_which_overrides_there_are(scripts: Scripts, script: str, override: str, status: str) -> None:
    scripts.store(overrides='["ovr_draft","ovr_local"]')
    scripts.redis.hset(scripts.catalog, "hash", "1")
    scripts.redis.hset(f"{scripts.catalog}:mocks", "ovr_a", "A")
    scripts.redis.hset(f"{scripts.catalog}:local", "ovr_local", "scn_a")
    before = scripts.everything()

    reply = scripts.activate("ci-42", override) if script == "activate" else scripts.deactivate("ci-42", override)

    assert reply["status"] == status
    if status != "ok":
        assert reply["detail"] == override
        assert scripts.everything() == before
        assert scripts.messages() == []
