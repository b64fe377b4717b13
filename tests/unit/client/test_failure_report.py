"""What a failed test's report says of its session."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sessionstore import Effect, NotFoundError, Session, SessionStoreError, StoreUnavailableError
from sessionstore.client.failure_report import describe
from sessionstore.session import SessionDetails, parse_time

STATE = Session(
    project="checkout",
    environment="staging",
    session_key="pytest-1-7",
    label="test_pay.py::test_declined",
    scenario="scn_paymentDeclined",
    overrides=("ovr_a", "ovr_b"),
)
EFFECT = Effect(revision=7, confirmed=2, expired=0, waited=True, commit_s=0.001, effective_s=0.001)
NOW = replace(
    STATE,
    details=SessionDetails(
        modified_at=parse_time("2026-06-23T12:00:00.000Z"),
        modified_by="ci (3f5a9c1b7d4e)",
        looked_up_at=parse_time("2026-06-23T12:00:01.250Z"),
    ),
)


def facts(
    state: Session = STATE,
    effect: Effect = EFFECT,
    now: Session | SessionStoreError | None = NOW,
    elsewhere: dict[str, int] | None = None,
) -> dict[str, str]:
    lines = describe(state, effect, now, elsewhere).splitlines()
    pairs = [line.split(":", 1) for line in lines]
    assert len({len(line) - len(line[12:]) for line in lines}) == 1, "the facts are one below the other"
    return {name: text.strip() for name, text in pairs}


def test_a_session_that_is_as_the_test_has_set_it() -> None:
    assert facts() == {
        "session": "pytest-1-7 on checkout/staging",
        "set": "scenario scn_paymentDeclined; overrides ovr_a, ovr_b; label 'test_pay.py::test_declined'",
        "now": "as this test has set it",
        "last write": "2026-06-23T12:00:00.000Z by ci (3f5a9c1b7d4e), as 'test_pay.py::test_declined'",
        "looked up": "by a proxy, 2026-06-23T12:00:01.250Z",
        "confirmed": "by 2 views",
        "more": "sessionstore watch --project checkout --environment staging",
    }


def test_a_session_that_another_run_has_overwritten() -> None:
    other = replace(NOW, scenario=None, overrides=(), label="nightly https://ci.example/42", global_delay_ms=5)
    told = facts(now=other)
    assert told["now"] == (
        "no scenario; no overrides; delay 5 ms; label 'nightly https://ci.example/42'; this test has not set that"
    )
    assert told["last write"] == "2026-06-23T12:00:00.000Z by ci (3f5a9c1b7d4e), as 'nightly https://ci.example/42'"


def test_a_session_that_no_view_has() -> None:
    alone = replace(EFFECT, confirmed=0)
    told = facts(effect=alone, now=replace(NOW, details=None), elsewhere={"uat": 1, "qa": 2})
    assert told["confirmed"] == "by no view: no proxy on checkout/staging serves this session"
    assert told["elsewhere"] == "Other environments have live views: qa has 2 views, uat has 1 view."
    assert told["looked up"].startswith("by no proxy")
    assert "x-flowmock-session" in told["looked up"]
    assert told["last write"].startswith("at a time that is not known by somebody unnamed")
    assert told["more"] == "sessionstore views --project checkout --environment staging"
    assert facts(effect=alone, elsewhere={})["elsewhere"] == (
        "No other registered environment of the project has a live view."
    )
    assert facts(effect=alone)["elsewhere"] == "Whether other environments have live views is not known."


def test_a_view_that_died_during_a_write() -> None:
    assert facts(effect=replace(EFFECT, confirmed=1, expired=1)) == {
        **facts(),
        "confirmed": "by 1 view",
        "expired": "the lease of 1 view: a proxy has died or hangs",
    }


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (NotFoundError("gone"), "it does not exist: it expired, or another run has deleted it"),
        (StoreUnavailableError("The gateway is away."), "not known: The gateway is away."),
        (None, None),
    ],
)
def test_a_session_that_could_not_be_read(now: SessionStoreError | None, text: str | None) -> None:
    told = facts(now=now)
    assert told.get("now") == text
    assert not told.keys() & {"last write", "looked up"}


@pytest.mark.parametrize(
    ("properties", "text"),
    [
        ({"global_delay_ms": 5}, "delay 5 ms"),
        ({"global_delay_max_ms": 7}, "delay 0 to 7 ms"),
        ({"label": None}, "ovr_b"),
    ],
)
def test_shows_delays_and_leaves_out_what_is_not_set(properties: dict[str, Any], text: str) -> None:
    shown = facts(state=replace(STATE, **properties))["set"]
    assert text in shown
    assert ("label" in shown) == (properties != {"label": None})
