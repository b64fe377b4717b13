"""get.lua: read one session."""

from __future__ import annotations

import pytest

from ..support.scripts import DETAILS, Scripts


def test_returns_the_state(scripts: Scripts) -> None:
    stored = scripts.store(
        rev=9, label="a/b", scenario="scn_a", overrides='["ovr_a","ovr_b"]', globalDelayMs=1, globalDelayMaxMs=2
    )
    before = scripts.everything()

    reply = scripts.get("ci-42")

    assert reply == {
        "status": "ok",
        "now": reply["now"],
        "session": {
            "sessionKey": "ci-42",
            "rev": 9,
            "label": "a/b",
            "scenario": "scn_a",
            "overrides": ["ovr_a", "ovr_b"],
            "globalDelayMs": 1,
            "globalDelayMaxMs": 2,
            "createdAt": int(stored["createdAt"]),
            "lastSeenAt": int(stored["lastSeenAt"]),
            "expiresAt": int(stored["expiresAt"]),
            "ttlSeconds": None,
            "modifiedAt": None,
            "modifiedBy": None,
            "lookedUpAt": None,
        },
    }
    assert scripts.everything() == before
    assert scripts.messages() == []


def test_returns_what_views_are_not_told(scripts: Scripts) -> None:
    scripts.store(ttlSeconds=3600, modifiedAt=2**52 + 1, modifiedBy='Zürich "ci"', lookedUpAt=2**52 + 3)

    session = scripts.get("ci-42")["session"]

    assert {name: session[name] for name in DETAILS} == {
        "ttlSeconds": 3600,
        "modifiedAt": 2**52 + 1,
        "modifiedBy": 'Zürich "ci"',
        "lookedUpAt": 2**52 + 3,
    }


@pytest.mark.parametrize("field", ["ttlSeconds", "modifiedAt", "lookedUpAt"])
def test_a_time_in_words_is_corrupt(scripts: Scripts, field: str) -> None:
    scripts.store(**{field: "soon"})

    assert scripts.get("ci-42") == {"status": "corrupt_session", "detail": "ci-42"}


def test_returns_null_where_there_is_none(scripts: Scripts) -> None:
    assert scripts.get("ci-42")["session"] is None
    assert scripts.everything() == {}


def test_a_session_ends_at_its_expiry_whether_or_not_it_is_collected(scripts: Scripts) -> None:
    scripts.store(expiresAt=scripts.now())

    assert scripts.get("ci-42")["session"] is None


def test_an_environment_that_is_not_registered_is_unknown(scripts: Scripts) -> None:
    scripts.redis.sadd(scripts.environments, "production")

    assert scripts.get("ci-42") == {"status": "unknown_environment", "detail": "staging"}
    assert scripts.get("ci-42", "production")["status"] == "ok"
