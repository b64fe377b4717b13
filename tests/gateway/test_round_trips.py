"""Each request makes at most one call of Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.auth import Authenticator
from sessionstore import AsyncSessionStore

from ..support.gateway import AUTHORIZATION, KEY, LEASE_S, PLACE
from ..support.redis_server import RedisServer


class Monitor:
    """The commands that clients send to a Redis, without those of scripts."""

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client()
        self._marker = server.client()

    def __enter__(self) -> Monitor:
        self._monitor = self._client.monitor()  # type: ignore[no-untyped-call]
        self._monitor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._monitor.__exit__(None, None, None)
        self._client.close()
        self._marker.close()

    def commands(self) -> list[str]:
        """The names of the commands since the last call."""
        self._marker.echo("that is all")
        names: list[str] = []
        while True:
            seen: dict[str, Any] = self._monitor.next_command()
            if seen["client_type"] == "lua":
                continue
            if "that is all" in seen["command"]:
                return [name for name in names if name not in ("CLIENT", "HELLO")]
            names.append(seen["command"].split()[0].upper())


@pytest.fixture
def monitor(own_redis: RedisServer) -> Iterator[Monitor]:
    with Monitor(own_redis) as monitor:
        yield monitor


async def test_get_put_and_delete_make_exactly_one(own_redis: RedisServer, monitor: Monitor) -> None:
    async with AsyncSessionStore.from_url(own_redis.url, lease_s=LEASE_S) as store:
        transport = httpx.ASGITransport(app=create_app(store, Authenticator(KEY)))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://gateway/api/v1", headers=AUTHORIZATION, params=PLACE
        ) as client:
            # Given an open connection, and a Redis that has the scripts
            for method, path in (
                ("GET", ""),
                ("POST", "/overrides/ovr_a"),
                ("DELETE", "/overrides/ovr_a"),
                ("DELETE", ""),
            ):
                await client.put("/sessions/ci-42", json={"label": "x"})
                await client.request(method, f"/sessions/ci-42{path}")
            await client.delete("/sessions/ci-42", params={**PLACE, "mode": "delete"})
            await client.get("/sessions")
            monitor.commands()

            # When each call is made, then it sends one EVALSHA
            for method, path, body in (
                ("PUT", "", {"label": "y"}),
                ("PUT", "", {"label": "y"}),
                ("GET", "", None),
                ("POST", "/overrides/ovr_a", None),
                ("DELETE", "/overrides/ovr_a", None),
                ("DELETE", "", None),
            ):
                response = await client.request(method, f"/sessions/ci-42{path}", json=body)
                assert response.status_code == 200
                assert monitor.commands() == ["EVALSHA"], (method, path)

            # And a call that is refused early sends nothing
            await client.put("/sessions/ci-42", json={"label": 5})
            await client.get("/sessions/ci-42", headers={"Authorization": "Bearer x"})
            assert monitor.commands() == []
