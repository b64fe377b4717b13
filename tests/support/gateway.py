"""The gateway's app, called in this process, and what every test of it sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import redis.asyncio

from gateway.app import Boundary
from sessionstore import AsyncSessionStore

KEY = "fmk_" + "k" * 43
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}
PLACE = {"project": "checkout", "environment": "staging"}
#: Seconds. Short, because the first write to a new Redis waits for a whole lease.
LEASE_S = 0.1


@dataclass
class API:
    """The app, a client that sends the key, and the app's store."""

    app: Boundary
    client: httpx.AsyncClient
    store: AsyncSessionStore

    def redis(self) -> redis.asyncio.Redis:
        """A plain client of the store's Redis."""
        return redis.asyncio.Redis(connection_pool=self.store._runner.pool)

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


def assert_error(response: httpx.Response, status: int, code: str, *words: str) -> str:
    """Check an error's envelope, and that its sentence holds each of `words`; return the sentence."""
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
