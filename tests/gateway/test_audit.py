"""The audit log: one line for each write, if it is switched on."""

from __future__ import annotations

import json
import logging
import signal
from typing import Any

import pytest

from sessionstore import AsyncEnvironment
from sessionstore.errors import NotEffectiveError, OutcomeUnknownError, StoreUnavailableError

from ..support.gateway import API, AUTHORIZATION, KEY, PLACE
from ..support.gateway_process import GatewayProcess

SESSION = "/sessions/ci%2042"


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    # Its lines come at any --log-level.
    caplog.set_level(logging.ERROR)
    caplog.set_level(logging.INFO, "gateway.audit")
    return caplog


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.name == "gateway.audit"]


async def test_has_one_line_for_each_write(api: API, audit: pytest.LogCaptureFixture) -> None:
    # When each kind of write is sent, and a read
    await api.put("%20ci%2042", {"label": "x"}, headers={"X-Request-Id": "r1"})
    await api.get("ci%2042")
    await api.post(f"{SESSION}/overrides/ovr_a", headers={"X-Request-Id": "r2"})
    await api.call("DELETE", f"{SESSION}/overrides/ovr_a", headers={"X-Request-Id": "r3"})
    await api.delete("ci%2042", headers={"X-Request-Id": "r4"})
    await api.delete("ci%2042", "delete", headers={"X-Request-Id": "r5"})

    # Then each write has a line that says who did what, to which session, from where
    found = lines(audit)
    assert [(line["requestId"], line["operation"], line["revision"]) for line in found] == [
        ("r1", "put", 1),
        ("r2", "activate", 2),
        ("r3", "deactivate", 3),
        ("r4", "reset", 4),
        ("r5", "delete", 5),
    ]
    key_id = found[0]["keyId"]
    assert len(key_id) == 12
    for line in found:
        assert {name: line[name] for name in ("project", "environment", "sessionKey", "status", "code")} == {
            **PLACE,
            "sessionKey": "ci 42",
            "status": 200,
            "code": None,
        }
        assert (line["keyId"], line["client"]) == (key_id, "127.0.0.1")


async def test_has_one_line_for_all_sessions_of_a_prefix(api: API, audit: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        await api.put(f"ci-{number}", {"label": "x"})
    audit.clear()

    for mode in ("reset", "delete"):
        await api.call("DELETE", "/sessions", params={**PLACE, "prefix": "ci-", "mode": mode})

    # Then it names the prefix, and the revision of the last change
    assert [(line["operation"], line["sessionKey"], line["revision"]) for line in lines(audit)] == [
        ("reset prefix", "ci-", 6),
        ("delete prefix", "ci-", 9),
    ]


async def test_has_no_line_for_a_refused_write(api: API, audit: pytest.LogCaptureFixture) -> None:
    await api.put("ci-42", {"label": 5})
    await api.put("ci-42", {}, headers={"If-Match": '"9"'})
    await api.put("ci-42", {}, headers={"Authorization": "Bearer x"})
    await api.delete("ci-42", "reset")
    assert lines(audit) == []


@pytest.mark.parametrize(
    ("error", "revision"),
    [
        (NotEffectiveError("The write was committed.", 7), 7),
        (OutcomeUnknownError("The answer was lost."), None),
        (StoreUnavailableError("Redis can't be reached."), None),
    ],
)
async def test_has_a_line_for_a_write_that_may_have_been_applied(
    api: API, audit: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception, revision: int | None
) -> None:
    async def put(self: AsyncEnvironment, *arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(AsyncEnvironment, "put", put)
    response = await api.put("ci-42")

    [line] = lines(audit)
    assert (line["status"], line["code"], line["revision"]) == (503, response.json()["code"], revision)


def test_is_switched_on_by_its_option() -> None:
    for options, count in ((("--audit-log",), 1), ((), 0)):
        with (
            GatewayProcess(None, *options, SESSIONSTORE_API_KEY=KEY) as gateway,
            gateway.client() as client,
        ):
            assert client.put("/sessions/ci-42", json={}, headers=AUTHORIZATION).status_code == 200
            # A line follows its answer.
            gateway.signal(signal.SIGTERM)
            assert gateway.wait() == 0
            logged = [json.loads(line) for line in gateway.log.splitlines()]
        assert [line["sessionKey"] for line in logged if line["logger"] == "gateway.audit"] == ["ci-42"] * count
