"""Stores from URLs: schemes, passwords, databases, sockets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError

from sessionstore import (
    AsyncSessionStore,
    InvalidInputError,
    LiveCounts,
    SessionStore,
    SessionStoreError,
    StoreUnavailableError,
)
from sessionstore.transport.topology import Cluster, Sentinels, Site

from ..conftest import require_redis_server
from ..support.adapter import as_async
from ..support.redis_cluster import RedisCluster
from ..support.redis_sentinel import RedisSentinels
from ..support.redis_server import RedisServer

PASSWORD = "s3cret-pa55"
USERS = Path(__file__).resolve().parents[2] / "deploy" / "users.acl"


@pytest.fixture(params=["sync", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Any:
    return SessionStore if request.param == "sync" else AsyncSessionStore


def open_store(kind: Any, url: str, **options: Any) -> AsyncSessionStore:
    store = kind.from_url(url, lease_s=0.1, **options)
    return as_async(store) if kind is SessionStore else store


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    """A Redis with a password, a user and a Unix socket."""
    require_redis_server()
    with RedisServer(requirepass=PASSWORD, unixsocket="redis.sock") as server:
        with server.client(password=PASSWORD) as client:
            client.execute_command("ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        yield server


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{password}@127.0.0.1:{port}/0",
        "redis://:{password}@127.0.0.1:{port}",
        "redis://app:{password}@127.0.0.1:{port}/3",
        "redis://127.0.0.1:{port}/?password={password}&db=4",
        "unix://{socket}?password={password}",
        "unix://app:{password}@{socket}?db=2",
        "redis://:{password}@127.0.0.1:{port}/0?encoding=latin-1",
    ],
)
async def test_connects_by_each_form_of_url(kind: Any, guarded: RedisServer, url: str, prefix: str) -> None:
    filled = url.format(password=PASSWORD, port=guarded.port, socket=guarded.folder / "redis.sock")
    async with open_store(kind, filled, prefix=prefix) as store:
        session = await store.environment("checkout", "staging").put("grüße")
        assert await store.environment("checkout", "staging").get("grüße") == session
        address = str(guarded.folder / "redis.sock") if url.startswith("unix") else f"127.0.0.1:{guarded.port}"
        assert await store.check_primaries(20) == {address: None}


async def test_the_gateways_redis_user_can_run_the_library_and_nothing_harmful(kind: Any, guarded: RedisServer) -> None:
    [rule] = re.findall(r"^user gateway (.*)$", USERS.read_text(encoding="utf-8"), re.MULTILINE)
    with guarded.client(password=PASSWORD) as client:
        client.execute_command("ACL", "SETUSER", "gateway", *rule.split())
    url = f"redis://gateway:gateway-password@127.0.0.1:{guarded.port}"
    async with open_store(kind, url) as store:
        staging = store.environment("checkout", "staging")
        async with staging.view(touch_interval_s=0.01) as view:
            catalog = {"project": "checkout", "environments": {"staging": {"mocks": [{"id": "ovr_a", "name": "A"}]}}}
            await store.project("checkout").apply_catalog(catalog)
            await staging.put("ci-42", overrides=["ovr_a"])
            assert view.get("ci-42") is not None
            await staging.deactivate("ci-42", "ovr_a")
            await staging.activate("ci-42", "ovr_a")
            await staging.reset("ci-42")
            assert len((await staging.list()).sessions) == len(await staging.views()) == 1
            await staging.touch({"ci-42": 1})
            assert await store.project("checkout").live_counts() == {"staging": LiveCounts(1, 1)}
            await staging.delete("ci-42")
        key = (await store.api_keys.create("ci")).key
        await store.api_keys.mark_used({key.id: (await store.api_keys.snapshot()).now})
        await store.api_keys.revoke(key.id)
    with guarded.client(username="gateway", password="gateway-password") as client:
        for harm in ("FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "CONFIG GET *", "KEYS *", "CLIENT KILL TYPE normal", "GET x"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*harm.split())


async def test_stores_keys_as_utf_8_with_any_encoding_in_the_url(kind: Any, guarded: RedisServer, prefix: str) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{guarded.port}/0?encoding=latin-1"
    async with open_store(kind, url, prefix=prefix) as store:
        await store.environment("checkout", "staging").put("grüße", label="ä")
        assert (await store.environment("checkout", "staging").get("grüße")).label == "ä"  # type: ignore[union-attr]
    with guarded.client(password=PASSWORD) as client:
        assert client.hget(f"{prefix}:{{checkout}}:staging:s:grüße", "label") == "ä".encode()


async def test_databases_do_not_share_sessions(kind: Any, guarded: RedisServer, prefix: str) -> None:
    base = f"redis://:{PASSWORD}@127.0.0.1:{guarded.port}"
    async with (
        open_store(kind, f"{base}/5", prefix=prefix) as five,
        open_store(kind, f"{base}/6", prefix=prefix) as six,
    ):
        await five.environment("checkout", "staging").put("ci-42")

        assert await six.environment("checkout", "staging").get("ci-42") is None


@pytest.mark.parametrize("password", ["wr0ng-passw0rd", None])
async def test_reports_a_wrong_password_without_quoting_it(
    kind: Any, guarded: RedisServer, password: str | None
) -> None:
    credentials = f":{password}@" if password else ""
    async with open_store(kind, f"redis://{credentials}127.0.0.1:{guarded.port}/0") as store:
        with pytest.raises(StoreUnavailableError, match="password") as caught:
            await store.environment("checkout", "staging").put("ci-42")
    assert "wr0ng" not in _texts(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    # Trying again does not help.
    assert "try again" not in str(caught.value)


async def test_reports_a_missing_database(kind: Any, guarded: RedisServer) -> None:
    async with open_store(kind, f"redis://:{PASSWORD}@127.0.0.1:{guarded.port}/99") as store:
        with pytest.raises(StoreUnavailableError, match="has no database of the number in the URL; nothing was"):
            await store.ping()


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@localhost:6379/0",
        f"localhost:6379/{PASSWORD}",
        f"rediss//:{PASSWORD}@localhost",
        f"redis:/{PASSWORD}",
        f"redis://:{PASSWORD}@localhost:notaport/0",
        f"redis://:{PASSWORD}@localhost:99999999/0",
        f"redis://:{PASSWORD}@[::1/0",
        f"redis://:{PASSWORD}@localhost/notadb",
        f"redis://:{PASSWORD}@localhost/0?db=x",
        f"redis://:{PASSWORD}@localhost/0?unknown_option=1",
        f"unix://?password={PASSWORD}",
        f"redis+cluster://:{PASSWORD}@",
        f"redis+cluster://:{PASSWORD}@localhost,",
        f"redis+cluster://:{PASSWORD}@localhost/name",
        f"redis+cluster://:{PASSWORD}@localhost,also@localhost",
        f"redis+cluster://:{PASSWORD}@localhost?unknown_option=1",
        f"unix+cluster:///path?password={PASSWORD}",
        f"redis+nothing://:{PASSWORD}@localhost",
        f"redis+sentinel://:{PASSWORD}@localhost",
        f"redis+sentinel://:{PASSWORD}@localhost/",
        f"redis+sentinel://:{PASSWORD}@localhost/service/notadb",
        f"redis+sentinel://:{PASSWORD}@localhost:notaport/service",
        f"redis+sentinel://:{PASSWORD}@localhost/service?sentinel_unknown=1",
        "",
    ],
)
def test_rejects_an_invalid_url_without_quoting_it(kind: Any, url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"redis://") as caught:
        kind.from_url(url)
    assert PASSWORD not in _texts(caught.value)


@pytest.mark.parametrize("url", ["redis+cluster://localhost/1", "rediss+cluster://localhost:7000,localhost:7001/?db=2"])
def test_rejects_a_database_of_a_cluster(kind: Any, url: str) -> None:
    with pytest.raises(InvalidInputError, match="has the database 0 only"):
        kind.from_url(url)


@pytest.mark.parametrize(
    ("url", "site"),
    [
        ("redis://localhost", None),
        ("redis+cluster://localhost", Cluster((("localhost", 6379),))),
        ("rediss+cluster://u:p%40@a:1,b,[::1]:3/0", Cluster((("a", 1), ("b", 6379), ("::1", 3)))),
        ("redis+sentinel://a,b:2/sessions", Sentinels((("a", 26379), ("b", 2)), "sessions")),
        (
            "rediss+sentinel://u:p%40@[::1]:3/my%20service/5?sentinel_password=x&ssl_cert_reqs=none",
            Sentinels((("::1", 3),), "my service", {"ssl": True, "ssl_cert_reqs": "none", "password": "x"}),
        ),
    ],
)
def test_a_url_says_what_locates_the_primary(kind: Any, url: str, site: Site) -> None:
    runner = kind.from_url(url)._runner

    assert runner.site == site
    options = runner.pool.connection_kwargs
    encrypted = redis.SSLConnection if kind is SessionStore else redis.asyncio.SSLConnection
    assert issubclass(runner.pool.connection_class, encrypted) is url.startswith("rediss")
    assert (options.get("username"), options.get("password")) == (("u", "p@") if "u:p" in url else (None, None))
    assert runner.config.database == (5 if "/5" in url else 0)


async def test_a_url_of_a_cluster_for_one_redis_and_the_other_way_round(
    kind: Any, shared_redis: RedisServer, shared_cluster: RedisCluster, shared_sentinels: RedisSentinels
) -> None:
    sentinel = shared_sentinels.sentinels[0].port
    for url, message in (
        (f"redis+cluster://127.0.0.1:{shared_redis.port}", "is not a cluster; give its URL as redis://"),
        (f"redis+sentinel://127.0.0.1:{shared_redis.port}/sessions", "is not a sentinel"),
        (f"redis+sentinel://127.0.0.1:{sentinel}/another", "can't be reached"),
    ):
        async with open_store(kind, url, deadline_s=1) as store:
            with pytest.raises(StoreUnavailableError, match=message):
                await store.ping()
    other = next(
        node
        for node in shared_cluster.nodes
        if node is not shared_cluster.primary_of(shared_cluster.slot_of("{checkout}"))
    )
    async with open_store(kind, other.url) as store:
        with pytest.raises(StoreUnavailableError, match=r"is a cluster; give its URL as redis\+cluster://"):
            await store.environment("checkout", "staging").put("ci-42")


async def test_wrong_password_of_a_cluster(kind: Any, shared_cluster: RedisCluster) -> None:
    async with open_store(kind, shared_cluster.url.replace("://", f"://:{PASSWORD}@")) as store:
        with pytest.raises(StoreUnavailableError, match="password in the URL") as caught:
            await store.environment("checkout", "staging").put("ci-42")
    assert PASSWORD not in _texts(caught.value)
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"])
@pytest.mark.parametrize("url", ["rediss://localhost", "rediss+cluster://localhost", "rediss+sentinel://localhost/a"])
def test_rejects_a_certificate_that_it_cannot_read(kind: Any, url: str, option: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=f"{option} in a Redis URL must name a file that can be read") as caught:
        kind.from_url(f"{url}?{option}={tmp_path}/missing")
    assert str(tmp_path) not in str(caught.value)
    kind.from_url(f"{url}?{option}={tmp_path}")


@pytest.mark.parametrize("url", [None, 5, b"redis://localhost"])
def test_rejects_a_url_that_is_not_text(kind: Any, url: Any) -> None:
    with pytest.raises(InvalidInputError, match="redis://"):
        kind.from_url(url)


@pytest.mark.parametrize("count", [0, -1, 1.5, "5", 100_001, True])
def test_rejects_an_invalid_number_of_connections(kind: Any, count: Any) -> None:
    with pytest.raises(InvalidInputError, match="max_connections"):
        kind.from_url("redis://localhost", max_connections=count)


async def test_a_store_connects_when_it_is_used(kind: Any) -> None:
    store = open_store(kind, "redis://127.0.0.1:1/0")
    with pytest.raises(SessionStoreError):
        await store.ping()
    await store.aclose()


def test_a_store_does_not_show_its_password(kind: Any) -> None:
    assert PASSWORD not in repr(kind.from_url(f"redis://:{PASSWORD}@localhost:6379/0"))


def _texts(error: BaseException | None) -> str:
    """The texts of an error and its causes, as a traceback prints them."""
    texts = []
    while error is not None:
        texts.append(repr(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return " ".join(texts)
