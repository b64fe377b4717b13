"""Quotas of the gateway: 409 quota_exceeded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.auth import Authenticator
from gateway.settings import parse_settings
from sessionstore import AsyncSessionStore, EmbeddedServer, QuotaExceededError
from sessionstore.client import SessionClient

from ..support.gateway import API, AUTHORIZATION, KEY, LEASE_S, PLACE, assert_error
from ..support.gateway_process import GatewayProcess


@pytest.fixture
async def bounded(request: pytest.FixtureRequest, embedded_server: EmbeddedServer, prefix: str) -> AsyncIterator[API]:
    """The API with the quotas that the test names."""
    quotas: dict[str, Any] = request.param
    store = AsyncSessionStore.embedded(embedded_server, prefix=prefix, lease_s=LEASE_S, **quotas)
    app = create_app(store, Authenticator(KEY))
    transport = httpx.ASGITransport(app=app)
    client = httpx.AsyncClient(transport=transport, base_url="http://gateway/api/v1", headers=AUTHORIZATION)
    async with store, client:
        yield API(app, client, store)


@pytest.mark.parametrize("bounded", [{"max_sessions": 1}, {"max_project_bytes": 600}], indirect=True)
async def test_a_write_over_a_quota_is_409_and_changes_nothing(bounded: API) -> None:
    await bounded.put("ci-1", {"label": "x"})
    before = await bounded.get("ci-1")

    refused = await bounded.put("ci-2", {"label": "y"})
    assert_error(refused, 409, "quota_exceeded", "Delete some sessions")
    assert "retry-after" not in refused.headers
    assert_error(await bounded.post("/sessions/ci-2/overrides/ovr_a"), 409, "quota_exceeded")

    assert (await bounded.get("ci-2")).status_code == 404
    assert (await bounded.get("ci-1")).json() == before.json()
    await bounded.delete("ci-1", "delete")
    assert (await bounded.put("ci-2", {"label": "y"})).status_code == 200


@pytest.mark.parametrize("bounded", [{"max_environments": 1}], indirect=True)
async def test_environments_without_a_catalog_are_bounded(bounded: API) -> None:
    assert (await bounded.put("ci-1")).status_code == 200

    response = await bounded.put("ci-1", params={**PLACE, "environment": "other"})

    assert_error(response, 409, "quota_exceeded", "register the environment with a catalog")


def test_the_options_reach_the_store_and_the_client_gets_the_error() -> None:
    with (
        GatewayProcess(
            None, "--max-sessions", "1", SESSIONSTORE_MAX_PROJECT_BYTES="600", SESSIONSTORE_API_KEY=KEY
        ) as gateway,
        SessionClient(gateway.url, api_key=KEY, project="checkout", environment="staging") as client,
    ):
        client.put("a")
        with pytest.raises(QuotaExceededError, match="its quota of 1 sessions"):
            client.put("b")
        with pytest.raises(QuotaExceededError, match="exceed its quota of 600 bytes"):
            client.put("a", label="x" * 98)


def test_the_defaults() -> None:
    settings = parse_settings(["--embedded"], {}, "gateway")
    quotas = (settings.max_sessions, settings.max_project_bytes, settings.max_environments)
    assert quotas == (None, None, 1000)
    assert parse_settings(["--embedded", "--max-environments", "off"], {}, "gateway").max_environments is None
