"""The gateway that the client calls, on a Redis that proxies' views can use too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sessionstore import SessionStore
from sessionstore.client import AsyncSessionClient, SessionClient

from ..support.adapter import Driver, as_async_client
from ..support.gateway import KEY
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer

#: Makes a client of either driver; the test closes it. Arguments as those of the clients.
MakeClient = Callable[..., AsyncSessionClient]
#: Answers a request in the gateway's place.
Handler = Callable[[httpx.Request], httpx.Response]

#: Seconds. A busy machine must not let a view's lease run out: the tests count the views.
LEASE_S = 1.0
PLACE = {"project": "checkout", "environment": "staging"}


@pytest.fixture(scope="module")
def store(shared_redis: RedisServer) -> Iterator[SessionStore]:
    """The gateway's store."""
    with SessionStore.from_url(shared_redis.url, lease_s=LEASE_S) as store:
        yield store


@pytest.fixture(scope="module")
def gateway(shared_redis: RedisServer, store: SessionStore) -> Iterator[GatewayProcess]:
    """A gateway whose sessions `store` sees."""
    with GatewayProcess(shared_redis.url, "--lease", str(LEASE_S), "--rate-limit", "off") as process:
        yield process


@pytest.fixture
def make_client(driver: Driver) -> MakeClient:
    """Make a client; a `handler` among its arguments answers instead of the network."""

    def make(url: str = "http://gateway", handler: Handler | None = None, **options: Any) -> AsyncSessionClient:
        if handler is not None:
            options["transport"] = httpx.MockTransport(handler)
        options = {"api_key": KEY, **PLACE, **options}
        if driver == "sync":
            return as_async_client(SessionClient(url, **options))
        return AsyncSessionClient(url, **options)

    return make
