"""delete.lua: remove a session."""

from __future__ import annotations

import pytest

from ..support.scripts import DAY_MS, Scripts


def test_removes_the_session_and_says_so(scripts: Scripts) -> None:
    scripts.put("ci-42", "+label", "x", op="a1")
    scripts.put("other", op="a2")
    scripts.messages()

    reply = scripts.delete("ci-42", op="a3")

    assert scripts.stored() == {}
    assert scripts.redis.zrange(scripts.index, 0, -1) == ["other"]
    assert scripts.redis.hmget(scripts.head, "rev", "layout", "id", "maxTtl") == ["3", "2", "a3", str(DAY_MS)]
    assert (reply["changed"], reply["existed"], reply["targetRev"], reply["session"]) == (True, True, 3, None)
    assert scripts.messages() == [
        {
            "type": "delete",
            "rev": 3,
            "id": "a3",
            "prev": "a2",
            "at": reply["now"],
            "wait": True,
            "sessionKey": "ci-42",
        }
    ]


@pytest.mark.parametrize("expired", [False, True])
def test_where_there_is_none_the_caller_waits_for_the_head(scripts: Scripts, expired: bool) -> None:
    # Given an environment at revision 2, and a session that has ended or never was
    scripts.put("other", op="a1")
    scripts.put("other", "+label", "x", op="a2")
    if expired:
        scripts.store("ci-42", expiresAt=scripts.now())
    scripts.messages()

    reply = scripts.delete("ci-42", op="a3")

    # Then what is left of it goes, and nothing is published
    assert (reply["changed"], reply["existed"], reply["targetRev"], reply["rev"]) == (False, False, 2, 2)
    assert scripts.stored("ci-42") == {}
    assert scripts.redis.zrange(scripts.index, 0, -1) == ["other"]
    assert scripts.redis.hget(scripts.head, "id") == "a2"
    assert scripts.messages() == []


@pytest.mark.parametrize(("if_match", "holds"), [("*", True), (",1,", True), (",2,", False)])
def test_if_match(scripts: Scripts, if_match: str, holds: bool) -> None:
    scripts.put("ci-42")
    before = scripts.everything()

    reply = scripts.delete("ci-42", if_match=if_match)

    assert reply["status"] == ("ok" if holds else "precondition_failed")
    if not holds:
        assert reply["detail"] == "1"
        assert scripts.everything() == before


def test_if_match_of_a_session_that_is_gone(scripts: Scripts) -> None:
    assert scripts.delete("ci-42", if_match="*") == {"status": "precondition_failed", "detail": ""}
