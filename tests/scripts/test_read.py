"""read.lua: read many sessions."""

from __future__ import annotations

from ..support.scripts import Scripts


def test_returns_those_that_exist_in_order(scripts: Scripts) -> None:
    scripts.put("b", "+label", "B")
    scripts.put("a", "+overrides", '["ovr_a"]')
    scripts.store("ended", expiresAt=scripts.now())

    keys = ["b", "ended", "never", "a"]
    reply = scripts.run("read", [scripts.session(key) for key in keys], list(keys))

    assert [session["sessionKey"] for session in reply["sessions"]] == ["b", "a"]
    assert reply["sessions"][0] == scripts.get("b")["session"]
    assert reply["sessions"][1] == scripts.get("a")["session"]


def test_none(scripts: Scripts) -> None:
    assert scripts.run("read", [], [])["sessions"] == []
