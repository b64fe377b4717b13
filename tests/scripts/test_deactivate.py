"""deactivate.lua: switch one override off."""

from __future__ import annotations

from ..support.scripts import Scripts, published


def test_removes_one_and_keeps_the_order_of_the_rest(scripts: Scripts) -> None:
    scripts.put("ci-42", "+overrides", '["ovr_c","ovr_b","ovr_a"]', op="a1")
    scripts.messages()

    reply = scripts.deactivate("ci-42", "ovr_b", op="a2", wait="0")

    assert scripts.stored()["overrides"] == '["ovr_c","ovr_a"]'
    assert (reply["changed"], reply["existed"], reply["targetRev"]) == (True, True, 2)
    [message] = scripts.messages()
    assert (message["type"], message["rev"], message["id"], message["prev"]) == ("set", 2, "a2", "a1")
    assert message["wait"] is False
    assert message["session"] == published(reply["session"])


def test_removing_the_last_leaves_an_empty_array(scripts: Scripts) -> None:
    scripts.put("ci-42", "+overrides", '["ovr_a"]')
    scripts.messages()

    reply = scripts.deactivate("ci-42", "ovr_a")

    assert "overrides" not in scripts.stored()
    assert reply["session"]["overrides"] == []
    assert scripts.messages()[0]["session"]["overrides"] == []


def test_an_override_that_is_off_stays_off(scripts: Scripts) -> None:
    scripts.put("ci-42", "+overrides", '["ovr_abc"]', op="a1")
    scripts.messages()

    reply = scripts.deactivate("ci-42", "ovr_ab", op="a2")

    assert (reply["changed"], reply["rev"]) == (False, 1)
    assert reply["session"]["overrides"] == ["ovr_abc"]
    assert scripts.messages() == []


def test_there_must_be_a_session(scripts: Scripts) -> None:
    assert scripts.deactivate("ci-42", "ovr_a") == {"status": "not_found", "detail": "ci-42"}
    assert scripts.everything() == {}


def test_an_ended_session_is_none(scripts: Scripts) -> None:
    scripts.store(expiresAt=scripts.now(), overrides='["ovr_a"]')
    before = scripts.everything()

    assert scripts.deactivate("ci-42", "ovr_a")["status"] == "not_found"
    assert scripts.everything() == before
