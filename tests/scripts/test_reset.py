"""reset.lua: clear everything that a PUT can set."""

from __future__ import annotations

import pytest

from ..support.scripts import DAY_MS, Scripts, published

PROPERTIES: dict[str, str | int] = {
    "label": "x",
    "scenario": "scn_a",
    "overrides": '["ovr_a"]',
    "globalDelayMs": 1,
    "globalDelayMaxMs": 2,
    "ttlSeconds": 3600,
}


@pytest.mark.parametrize("names", [tuple(PROPERTIES), *((name,) for name in PROPERTIES)])
def test_clears_every_property(scripts: Scripts, names: tuple[str, ...]) -> None:
    scripts.store("ci-42", **{name: PROPERTIES[name] for name in names})
    created_at = scripts.stored()["createdAt"]
    scripts.redis.hset(scripts.head, mapping={"rev": 1, "layout": 2, "id": "a1", "maxTtl": DAY_MS})

    reply = scripts.reset("ci-42", op="a2")

    assert scripts.stored() == {
        "rev": "2",
        "createdAt": created_at,
        "lastSeenAt": str(reply["now"]),
        "expiresAt": str(reply["now"] + DAY_MS),
        "modifiedAt": str(reply["now"]),
    }
    [message] = scripts.messages()
    assert (message["type"], message["rev"], message["prev"], message["id"]) == ("set", 2, "a1", "a2")
    assert message["session"] == published(reply["session"])


def test_a_session_with_nothing_set_is_only_seen(scripts: Scripts) -> None:
    scripts.put("ci-42", op="a1")
    scripts.redis.hset(scripts.session("ci-42"), "lastSeenAt", 5)
    scripts.messages()

    reply = scripts.reset("ci-42", op="a2")

    assert (reply["changed"], reply["targetRev"], reply["rev"]) == (False, 1, 1)
    assert scripts.stored()["lastSeenAt"] == str(reply["now"])
    assert scripts.messages() == []


def test_there_must_be_a_session(scripts: Scripts) -> None:
    assert scripts.reset("ci-42") == {"status": "not_found", "detail": "ci-42"}
    assert scripts.reset("ci-42", if_match="*") == {"status": "precondition_failed", "detail": ""}
    assert scripts.everything() == {}


def test_an_ended_session_is_none(scripts: Scripts) -> None:
    scripts.store(expiresAt=scripts.now(), label="old")
    before = scripts.everything()

    assert scripts.reset("ci-42")["status"] == "not_found"
    assert scripts.everything() == before


@pytest.mark.parametrize(("if_match", "holds"), [("*", True), (",1,", True), (",2,", False)])
def test_if_match(scripts: Scripts, if_match: str, holds: bool) -> None:
    scripts.put("ci-42", "+label", "x")
    before = scripts.everything()

    reply = scripts.reset("ci-42", if_match=if_match)

    assert reply["status"] == ("ok" if holds else "precondition_failed")
    if not holds:
        assert reply["detail"] == "1"
        assert scripts.everything() == before
