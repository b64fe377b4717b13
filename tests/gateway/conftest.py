"""Fixtures for the gateway: the app on the embedded store and on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.app import create_app
from gateway.auth import Authenticator
from sessionstore import AsyncSessionStore

from ..conftest import require_redis_server
from ..support.gateway import API, AUTHORIZATION, KEY, LEASE_S


@pytest.fixture(autouse=True)
def patient_limiter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the limiter wait on a slow machine; tests of its deadline set their own."""
    monkeypatch.setattr("gateway.limits._DEADLINE_S", 20.0)


@pytest.fixture(params=["embedded", "redis"])
async def api(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[API]:
    """The API on the embedded store, and on a real Redis."""
    if request.param == "embedded":
        store = AsyncSessionStore.embedded(request.getfixturevalue("embedded_server"), prefix=prefix, lease_s=LEASE_S)
    else:
        require_redis_server()
        store = AsyncSessionStore.from_url(request.getfixturevalue("shared_redis").url, prefix=prefix, lease_s=LEASE_S)
    app = create_app(store, Authenticator(KEY))
    transport = httpx.ASGITransport(app=app)
    async with (
        store,
        httpx.AsyncClient(transport=transport, base_url="http://gateway/api/v1", headers=AUTHORIZATION) as client,
    ):
        yield API(app, client, store)
