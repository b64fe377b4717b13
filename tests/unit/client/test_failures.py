"""Which error a failed call raises, and when it is sent again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.errors import STATUS
from sessionstore import (
    AccessDeniedError,
    InvalidInputError,
    NotDurableError,
    NotEffectiveError,
    OutcomeUnknownError,
    SessionPatch,
    SessionStoreError,
    StoreUnavailableError,
    TooFewViewsError,
)
from sessionstore.client.calls import Answer, Call, SessionCalls
from sessionstore.client.failures import CLASSES, Failure, Retry, lost_answer, read_answer

CALLS = SessionCalls(None, None)
GATEWAY = "The gateway at http://gateway"
READ: Call[Any] = CALLS.get("ci-42")


def put(if_match: int | None = None) -> Call[Any]:
    return CALLS.put(
        "ci-42", SessionPatch(), replace=False, if_match=if_match, if_none_match=None, views=0, wait=True, replicas=None
    )


def refused(status: int, code: str, call: Call[Any] | None = None, **headers: str) -> Failure:
    """What a call makes of an error of the API."""
    body = json.dumps({"error": "A sentence.", "code": code}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    failure = read_answer(call or put(), Answer(status, named, body), GATEWAY)
    assert isinstance(failure, Failure)
    return failure


def test_every_code_of_the_gateway_has_a_class_of_the_library() -> None:
    told_by_status = {"bad_request", "invalid_json", "method_not_allowed", "body_too_large", "unsupported_media_type"}
    assert STATUS.keys() - CLASSES.keys() == told_by_status
    for code, status in STATUS.items():
        error = refused(status, code).error
        assert error.code == code
        assert str(error) == "A sentence."
        assert isinstance(error, CLASSES.get(code, InvalidInputError))


def test_a_class_that_stands_for_one_code_has_it() -> None:
    for code, kind in CLASSES.items():
        if list(CLASSES.values()).count(kind) == 1:
            assert kind.code == code


def test_an_unknown_code_is_told_by_its_status() -> None:
    assert type(refused(422, "new_rule").error) is InvalidInputError
    assert type(refused(503, "new_state").error) is SessionStoreError
    assert not refused(503, "new_state").repeat


def test_an_error_keeps_what_else_the_answer_tells() -> None:
    error = refused(503, "not_effective", etag='"7"').error
    assert isinstance(error, NotEffectiveError)
    assert error.revision == 7
    error = refused(503, "too_few_views", etag='"7"', session_views="confirmed=1").error
    assert isinstance(error, TooFewViewsError)
    assert (error.revision, error.confirmed) == (7, 1)
    error = refused(503, "too_few_views", session_views="confirmed=0").error
    assert isinstance(error, TooFewViewsError)
    assert (error.revision, error.confirmed) == (None, 0)
    for text, replicas in ("1", 1), ("", 0), ("one", 0):
        error = refused(503, "not_durable", etag='"7"', session_replicas=text).error
        assert isinstance(error, NotDurableError)
        assert (error.revision, error.replicas) == (7, replicas)
    assert "names request 4f5a" in str(refused(500, "internal_error", x_request_id="4f5a").error)


@pytest.mark.parametrize("code", ["rate_limited", "store_unavailable", "too_many_connections"])
def test_a_call_that_changed_nothing_is_sent_again(code: str) -> None:
    for call in (READ, put(), put(if_match=7)):
        failure = refused(STATUS[code], code, call, retry_after="3")
        assert failure.repeat
        assert failure.retry_after_s == 3


@pytest.mark.parametrize("code", ["outcome_unknown", "not_effective"])
def test_a_write_that_may_be_applied_is_sent_again_without_a_precondition_only(code: str) -> None:
    assert refused(503, code, put()).repeat
    assert not refused(503, code, put(if_match=7)).repeat


@pytest.mark.parametrize(
    "code", ["too_few_views", "internal_error", "precondition_failed", "unauthorized", "not_durable"]
)
def test_other_errors_are_final(code: str) -> None:
    assert not refused(STATUS.get(code, 503), code, retry_after="1").repeat


def test_a_date_to_retry_after_is_left_out() -> None:
    assert refused(429, "rate_limited", retry_after="Wed, 21 Oct 2026 07:28:00 GMT").retry_after_s == 0


@pytest.mark.parametrize(
    ("call", "kind", "repeat"),
    [(READ, StoreUnavailableError, True), (put(), OutcomeUnknownError, True), (put(7), OutcomeUnknownError, False)],
)
def test_a_server_in_between_that_fails_loses_the_answer(
    call: Call[Any], kind: type[SessionStoreError], repeat: bool
) -> None:
    failure = read_answer(call, Answer(502, {}, b"<h1>Bad Gateway</h1>"), GATEWAY)
    assert isinstance(failure, Failure)
    assert type(failure.error) is kind
    assert failure.repeat == repeat
    assert "http://gateway answered 502" in str(failure.error)


def test_a_server_that_is_not_the_gateway_is_told_from_it() -> None:
    for status, headers, body in [(404, {}, b"<h1>Not Found</h1>"), (301, {"location": "https://gateway"}, b"")]:
        failure = read_answer(put(), Answer(status, headers, body), GATEWAY)
        assert isinstance(failure, Failure)
        assert "is this the gateway's URL?" in str(failure.error)
        assert not failure.repeat
    for body in (b"<h1>Welcome</h1>", b"{}"):
        failure = read_answer(READ, Answer(200, {}, body), GATEWAY)
        assert isinstance(failure, Failure)
        assert type(failure.error) is StoreUnavailableError
        assert "something else than this API's JSON" in str(failure.error)


@pytest.mark.parametrize("call", [READ, put(), put(7)])
def test_a_request_that_never_left_changed_nothing(call: Call[Any]) -> None:
    reason = ConnectionRefusedError("Connection refused")
    failure = lost_answer(call, reason, GATEWAY, sent=False)
    assert type(failure.error) is StoreUnavailableError
    assert "can't be reached: Connection refused. Nothing was changed" in str(failure.error)
    assert failure.error.__cause__ is reason
    assert failure.repeat


@pytest.mark.parametrize(
    ("call", "kind", "repeat", "words"),
    [
        (READ, StoreUnavailableError, True, "did not answer: timed out."),
        (put(), OutcomeUnknownError, True, "applied whole or not at all; sending it again is safe"),
        (put(7), OutcomeUnknownError, False, "applied whole or not at all; read the session"),
    ],
)
def test_a_request_that_left_may_be_applied(
    call: Call[Any], kind: type[SessionStoreError], repeat: bool, words: str
) -> None:
    failure = lost_answer(call, TimeoutError("timed out"), GATEWAY, sent=True)
    assert type(failure.error) is kind
    assert failure.repeat == repeat
    assert words in str(failure.error)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pauses(retry_for_s: float, failure: Failure, draw: float = 1.0) -> Iterator[float]:
    """The pauses of a call that fails at once each time it is sent."""
    clock = Clock()
    retry = Retry(retry_for_s, clock, lambda: draw)
    while True:
        try:
            pause = retry.pause_s(failure)
        except StoreUnavailableError:
            return
        clock.now += pause
        yield pause


AGAIN = Failure(StoreUnavailableError("down"), True)


def test_pauses_grow_to_a_second() -> None:
    assert list(pauses(5.0, AGAIN)) == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    assert list(pauses(1.0, AGAIN, draw=0.0)) == [0.025, 0.05, 0.1, 0.2, 0.4]


def test_the_gateway_s_own_pause_is_kept() -> None:
    assert list(pauses(7.0, Failure(AGAIN.error, True, 3.0))) == [3.0, 3.0]


def test_a_pause_that_would_take_too_long_raises_at_once() -> None:
    assert list(pauses(2.0, Failure(AGAIN.error, True, 3.0))) == []
    assert list(pauses(0.0, AGAIN)) == []


def test_a_gateway_that_can_not_be_reached_is_tried_for_five_seconds() -> None:
    failure = lost_answer(put(), ConnectionRefusedError(), GATEWAY, sent=False)
    assert 4 < sum(pauses(30.0, failure)) <= 5
    assert sum(pauses(1.0, failure)) <= 1


def test_what_is_not_safe_is_raised() -> None:
    error = AccessDeniedError("no")
    with pytest.raises(AccessDeniedError) as caught:
        Retry(30.0).pause_s(Failure(error))
    assert caught.value is error
