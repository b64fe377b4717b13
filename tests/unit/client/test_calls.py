"""Each call as an HTTP request, and each answer as a value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sessionstore import UNSET, InvalidOverrideError, InvalidQueryError, InvalidSessionKeyError, SessionPatch
from sessionstore.client.calls import Answer, Call, SessionCalls

CALLS = SessionCalls("checkout", "staging")
PLACE = {"project": "checkout", "environment": "staging"}
SESSION = {
    "project": "checkout",
    "environment": "staging",
    "sessionKey": "ci-42",
    "label": "CI run 4821",
    "scenario": None,
    "overrides": ["ovr_a"],
    "globalDelayMs": 5,
    "globalDelayMaxMs": 0,
    "lastSeenAt": "2026-06-23T12:00:00.250Z",
}


def put(session_key: str = "ci-42", patch: SessionPatch | None = None, **options: Any) -> Call[Any]:
    given = {"replace": False, "if_match": None, "if_none_match": None, "views": 0, "wait": True, "replicas": None}
    return CALLS.put(session_key, patch or SessionPatch(), **{**given, **options})


def answer(document: object, **headers: str) -> Answer:
    return Answer(
        200, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(document).encode()
    )


def test_a_put_sends_what_is_set_and_leaves_out_what_is_not() -> None:
    call = put(patch=SessionPatch(scenario=None, overrides=("ovr_a",), label="mine", global_delay_ms=UNSET))
    assert (call.method, call.path, call.query) == ("PUT", "/api/v1/sessions/ci-42", PLACE)
    assert call.headers == {"content-type": "application/json"}
    assert json.loads(call.content or b"") == {"scenario": None, "overrides": ["ovr_a"], "label": "mine"}


def test_an_unknown_term_is_an_error() -> None:
    for call in (put, lambda **terms: CALLS.end("ci-42", "reset", if_match=None, **terms)):
        with pytest.raises(TypeError, match="replica"):
            call(replica=1)


@pytest.mark.parametrize(
    ("options", "query", "headers"),
    [
        ({"replace": True}, {"mode": "replace"}, {}),
        ({"views": 2}, {"views": "2"}, {}),
        ({"replicas": 1}, {"replicas": "1"}, {}),
        ({"replicas": 0}, {"replicas": "0"}, {}),
        ({"wait": False}, {}, {"prefer": "respond-async"}),
        ({"if_match": 7}, {}, {"if-match": '"7"'}),
        ({"if_match": [7, 8]}, {}, {"if-match": '"7", "8"'}),
        ({"if_match": "*"}, {}, {"if-match": "*"}),
        ({"if_none_match": "*"}, {}, {"if-none-match": "*"}),
    ],
)
def test_options_of_a_put(options: dict[str, Any], query: dict[str, str], headers: dict[str, str]) -> None:
    call = put(**options)
    assert call.query == PLACE | query
    assert call.headers == {"content-type": "application/json"} | headers


@pytest.mark.parametrize("options", [{"if_match": "7"}, {"if_match": []}, {"if_match": True}, {"if_none_match": "7"}])
def test_an_invalid_precondition_is_refused_before_it_is_sent(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidQueryError, match=next(iter(options))):
        put(**options)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a/b c", "a%2Fb%20c"),
        (" ключ\n", "%D0%BA%D0%BB%D1%8E%D1%87"),
        ("%41", "%2541"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("a.b", "a.b"),
    ],
)
def test_a_session_key_is_one_segment_of_the_path(key: str, path: str) -> None:
    assert put(key).path == f"/api/v1/sessions/{path}"


def test_long_session_keys_that_begin_the_same_stay_apart() -> None:
    paths = {put("x" * 300 + end).path for end in "ab"}
    assert len(paths) == 2
    assert all(len(path) == len("/api/v1/sessions/") + 200 for path in paths)


def test_what_can_not_be_sent_is_refused() -> None:
    with pytest.raises(InvalidSessionKeyError):
        put(" ")
    with pytest.raises(InvalidOverrideError):
        CALLS.switch("ci-42", "ovr_a/b", True, views=0, wait=True, replicas=None)
    with pytest.raises(InvalidQueryError, match="limit"):
        CALLS.list(0, None, None)
    with pytest.raises(InvalidQueryError, match="limit"):
        CALLS.scenarios(101, None, None)


def test_the_gateway_chooses_what_is_not_named() -> None:
    assert SessionCalls(None, None).get("ci-42").query == {}


def test_only_a_write_without_precondition_can_be_repeated_after_a_lost_answer() -> None:
    assert put().repeatable
    assert not put(if_match=7).repeatable
    assert not put(if_none_match="*").repeatable
    assert CALLS.get("ci-42").repeatable
    assert not CALLS.get("ci-42").writes
    assert CALLS.end("ci-42", "delete", if_match=None, views=0, wait=True, replicas=None).writes


def test_an_answer_becomes_a_session() -> None:
    session = put().read(
        answer(
            SESSION,
            etag='W/"7"',
            session_expires="2026-06-24T12:00:00.250Z",
            server_timing="commit;dur=0.31, effective;dur=1.50",
            session_views="confirmed=3, expired=1",
        )
    )
    assert session.label == "CI run 4821"
    assert session.overrides == ("ovr_a",)
    assert session.global_delay_ms == 5
    assert session.revision == 7
    assert session.last_seen_at == 1_782_216_000_250
    assert session.expires_at - session.last_seen_at == 86_400_000
    assert session.effect.waited
    assert (session.effect.confirmed, session.effect.expired) == (3, 1)
    assert (session.effect.commit_s, session.effect.effective_s) == pytest.approx((0.00031, 0.0015))


def test_a_write_that_answered_at_commit_has_not_waited() -> None:
    session = put().read(answer(SESSION, etag='"7"', server_timing="commit;dur=0.31"))
    assert not session.effect.waited


def test_what_was_read_has_no_effect() -> None:
    assert CALLS.get("ci-42").read(answer(SESSION, etag='"7"')).effect is None


def test_a_page_of_scenarios() -> None:
    scenarios = [{"id": "scn_a", "name": "A", "urlId": "a"}]
    page = CALLS.scenarios(50, None, None).read(answer({"scenarios": scenarios, "nextBefore": "x"}))
    assert [(scenario.id, scenario.url_id) for scenario in page.scenarios] == [("scn_a", "a")]
    assert page.next_before == "x"
