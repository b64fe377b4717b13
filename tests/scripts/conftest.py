"""Each script's tests run on fakeredis and on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest

from ..support.leases import Leases
from ..support.redis_server import RedisServer
from ..support.scripts import Scripts


@pytest.fixture(params=["fakeredis", "redis"])
def scripts(request: pytest.FixtureRequest, prefix: str) -> Iterator[Scripts]:
    """The scripts on an environment of its own; the real Redis lets each use no key but those in KEYS."""
    if request.param == "fakeredis":
        with fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True) as client:
            scripts = Scripts(client, prefix)
            yield scripts
            scripts.close()
        return
    server: RedisServer = request.getfixturevalue("shared_redis")
    with server.client(decode_responses=True) as client, server.client(decode_responses=True) as restricted:
        scripts = Scripts(client, prefix, restricted)
        yield scripts
        scripts.close()


@pytest.fixture
def leases(scripts: Scripts) -> Iterator[Leases]:
    leases = Leases(scripts)
    yield leases
    leases.close()
