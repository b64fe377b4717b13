"""While a shard is down: its projects are 503 within the deadline, and everything else works."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.crc import key_slot

from sessionstore import SessionStore

from ..conftest import require_redis_server
from ..support.gateway import assert_error
from ..support.gateway_process import GatewayProcess
from ..support.polling import await_true
from ..support.redis_cluster import RedisCluster
from ..support.redis_server import RedisServer

DEADLINE_S = 1.0
PREFIX = "ss"


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """Three primaries without replicas: a shard that is down stays down, and comes back with the API keys."""
    require_redis_server()
    with RedisCluster(replicas=0, appendonly="yes") as cluster:
        yield cluster


@pytest.fixture
def keys_shard(cluster: RedisCluster) -> RedisServer:
    """The primary that holds the API keys."""
    return cluster.primary_of(key_slot(f"{PREFIX}:keys".encode()))


class Places:
    """A gateway, and projects on the shard of the keys and elsewhere."""

    def __init__(self, cluster: RedisCluster, keys_shard: RedisServer, gateway: GatewayProcess, secret: str) -> None:
        names = [f"project-{number}" for number in range(30)]
        homes = {name: cluster.primary_of(key_slot(name.encode())) for name in names}
        self.down = next(name for name, home in homes.items() if home is keys_shard)
        others = [node for node in cluster.nodes if node is not keys_shard]
        self.up = [next(name for name, home in homes.items() if home is node) for node in others]
        self.base = f"http://{gateway.host}:{gateway.port}"
        self.secret = secret
        self.client = httpx.Client(timeout=20)

    def call(self, method: str, project: str, secret: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret or self.secret}"}
        params = {"project": project, "environment": "staging"}
        url = f"{self.base}/api/v1/sessions/ci-42"
        body: dict[str, str] | None = {} if method == "PUT" else None
        return self.client.request(method, url, params=params, headers=headers, json=body)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"{self.base}{path}")

    def primaries_up(self) -> dict[str, bool]:
        """By address, whether the gateway's metrics call a primary up."""
        return {
            sample.labels["address"]: sample.value == 1
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == "sessionstore_redis_primary_up"
        }


@pytest.fixture
def places(cluster: RedisCluster, keys_shard: RedisServer) -> Iterator[Places]:
    with SessionStore.from_url(cluster.url, prefix=PREFIX) as store:
        secret = store.api_keys.create("ci").secret
    options = ("--deadline", f"{DEADLINE_S}s", "--lease", "0.1", "--prefix", PREFIX)
    with GatewayProcess(cluster.url, *options, SESSIONSTORE_API_KEY="") as gateway:
        places = Places(cluster, keys_shard, gateway, secret)
        with places.client:
            for project in (places.down, *places.up):
                assert places.call("PUT", project).status_code == 200
            yield places


@pytest.mark.parametrize("down", ["killed", "frozen"])
def test_only_its_projects_are_503(places: Places, cluster: RedisCluster, keys_shard: RedisServer, down: str) -> None:
    # Given the shard of the API keys, which is down
    keys_shard.kill() if down == "killed" else keys_shard.pause()

    # Then calls of a project on it are 503, long before the client's own time-out
    for method in ("GET", "PUT"):
        response = places.call(method, places.down)
        assert response.status_code == 503
        assert response.json()["code"] in ("store_unavailable", "outcome_unknown")
    # And loaded keys go on opening the others
    for project in places.up:
        for method in ("GET", "PUT", "GET", "PUT"):
            assert places.call(method, project).status_code == 200
    # And a key that can't be judged is 503
    unknown = "fmk_" + 43 * "x"
    await_true(lambda: places.call("GET", places.up[0], unknown).status_code == 503, "the keys can't be loaded")
    assert_error(places.call("GET", places.up[0], unknown), 503, "store_unavailable")
    # And the gateway stays ready, and tells which shard is down
    for _ in range(4):
        assert places.get("/readyz").status_code == 200
    up = {f"127.0.0.1:{node.port}": node is not keys_shard for node in cluster.nodes}
    await_true(lambda: places.primaries_up() == up, "the metrics name it")

    # And when the shard is back, so are its projects
    keys_shard.start() if down == "killed" else keys_shard.resume()
    await_true(lambda: places.call("PUT", places.down).status_code == 200, "the shard is back")


def test_no_shard_makes_the_gateway_unready(places: Places, cluster: RedisCluster) -> None:
    for node in cluster.nodes:
        node.pause()

    assert_error(places.get("/readyz"), 503, "store_unavailable")

    for node in cluster.nodes:
        node.resume()
    await_true(lambda: places.get("/readyz").status_code == 200, "the gateway is ready")
