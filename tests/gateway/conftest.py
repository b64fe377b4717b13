"""Fixtures for the gateway: the app on either store, and the real process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from gateway.app import create_app
from gateway.auth import Authenticator
from sessionstore import AsyncSessionStore

from ..conftest import require_redis_server

KEY = "fmk_" + "k" * 43
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}
PLACE = {"project": "checkout", "environment": "staging"}
#: Seconds. Short: the first write to a Redis that has only just started waits for one.
LEASE_S = 0.1


@dataclass
class API:
    """The app, a client of it that is authorised, and the store behind it."""

    app: Starlette
    client: httpx.AsyncClient
    store: AsyncSessionStore

    async def get(self, key: str, **options: Any) -> httpx.Response:
        return await self._call("GET", f"/sessions/{key}", options)

    async def put(self, key: str, body: object = None, **options: Any) -> httpx.Response:
        """PUT a JSON body; `content` in the options sends raw bytes."""
        if "content" not in options:
            options["json"] = {} if body is None else body
        else:
            options.setdefault("headers", {}).setdefault("Content-Type", "application/json")
        return await self._call("PUT", f"/sessions/{key}", options)

    async def delete(self, key: str, mode: str | None = None, **options: Any) -> httpx.Response:
        if mode is not None:
            options["params"] = {**PLACE, **options.get("params", {}), "mode": mode}
        return await self._call("DELETE", f"/sessions/{key}", options)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        return await self._call("POST", path, options)

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self._call(method, path, options)

    async def _call(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        options.setdefault("params", PLACE)
        return await self.client.request(method, path, **options)


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


def assert_error(response: httpx.Response, status: int, code: str, *words: str) -> str:
    """Check an error's envelope; each of `words` must be in its sentence, which is returned."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    document = response.json()
    assert list(document) == ["error", "code"]
    assert document["code"] == code
    sentence: str = document["error"]
    assert sentence.endswith((".", "?"))
    for word in words:
        assert word in sentence
    return sentence
