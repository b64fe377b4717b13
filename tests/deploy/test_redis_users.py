"""deploy/users.acl on a real Redis: the gateway's user may do all that is needed, the proxy's as little as possible."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from redis.exceptions import NoPermissionError
from typer.testing import CliRunner

from sessionstore import AsyncSessionStore, NotDurableError, SessionStore, StoreUnavailableError, View
from sessionstore.cli.app import app
from sessionstore.protocol.scripts import load_script, script_names

from ..conftest import require_redis_server
from ..support.gateway import PLACE
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer
from ..support.replication import short_waits
from .conftest import ACL, PASSWORDS, Guarded

CATALOG = {"project": "checkout", "environments": {"staging": {"mocks": [{"id": "ovr_a", "name": "A"}]}}}

#: What a view runs.
VIEW_SCRIPTS = ("ack", "catalog_read", "environments", "join", "leave", "ping", "renew", "snapshot", "touch")


def cli(url: str, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--redis-url", url])
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture
def view(guarded: Guarded) -> Iterator[View]:
    """A view of the proxy's user, on an environment with a catalog."""
    with SessionStore.from_url(guarded.url("gateway")) as store:
        store.project("checkout").apply_catalog(CATALOG)
    with (
        SessionStore.from_url(guarded.url("proxy-checkout")) as store,
        store.environment("checkout", "staging").view(touch_interval_s=0.01) as view,
    ):
        yield view


def test_the_gateway_and_a_proxy_work(guarded: Guarded, view: View) -> None:
    # Given: the gateway with its user, and a key that the command line made with the same user.
    key = cli(guarded.url("gateway"), "keys", "create", "ci", "--project", "checkout").strip()
    with GatewayProcess(guarded.url("gateway"), SESSIONSTORE_API_KEY="") as gateway, httpx.Client(timeout=20) as client:
        base = f"http://{gateway.host}:{gateway.port}"
        session = f"{base}/api/v1/sessions/ci-42"

        def call(method: str, url: str, **options: Any) -> httpx.Response:
            response = client.request(method, url, headers={"Authorization": f"Bearer {key}"}, **options)
            assert response.status_code == 200, response.text
            return response

        # When: each route is called.
        put = call("PUT", session, params=PLACE, json={"overrides": ["ovr_a"], "label": "CI"})
        call("DELETE", f"{session}/overrides/ovr_a", params=PLACE)
        call("POST", f"{session}/overrides/ovr_a", params=PLACE)

        # Then: the proxy has it, the limit is counted, and everything else works, too.
        assert put.headers["session-views"] == "confirmed=1, expired=0"
        assert put.headers["ratelimit"].startswith('"key";r=')
        seen = view.get("ci-42")
        assert seen is not None
        assert seen.overrides == ("ovr_a",)
        assert view.catalog is not None
        for path in ("/api/v1/sessions", "/api/v1/sessions/ci-42", "/api/v1/scenarios"):
            call("GET", f"{base}{path}", params=PLACE)
        assert call("GET", f"{base}/readyz").json()["status"] == "ok"
        metrics = call("GET", f"{base}/metrics").text
        assert 'sessionstore_live_sessions{environment="staging",project="checkout"} 1.0' in metrics
        assert "sessionstore_limiter_failures_total 0.0" in metrics
        _await_touch(guarded)
        call("DELETE", session, params={**PLACE, "mode": "reset"})
        call("DELETE", session, params={**PLACE, "mode": "delete"})
    assert view.stats.resyncs <= 1
    view.close()
    assert guarded.denied() == []


def _await_touch(guarded: Guarded) -> None:
    """Wait until the proxy has reported its look-up."""
    with SessionStore.from_url(guarded.url("gateway")) as store:
        staging = store.environment("checkout", "staging")
        session = staging.get("ci-42")
        assert session is not None
        deadline = time.monotonic() + 20
        while session.last_seen_at <= session.created_at:
            assert time.monotonic() < deadline, "no touch arrived"
            session = staging.get("ci-42")
            assert session is not None


async def test_an_asyncio_proxy_works(guarded: Guarded) -> None:
    async with AsyncSessionStore.from_url(guarded.url("gateway")) as store:
        await store.project("checkout").apply_catalog(CATALOG)
        staging = store.environment("checkout", "staging")
        async with (
            AsyncSessionStore.from_url(guarded.url("proxy-checkout")) as proxy,
            proxy.environment("checkout", "staging").view(touch_interval_s=0.01) as view,
        ):
            session = await staging.put("ci-42", overrides=["ovr_a"])
            assert session.effect is not None
            assert session.effect.confirmed == 1
            assert view.get("ci-42") == session
    assert guarded.denied() == []


def test_writes_may_wait_for_replicas(guarded: Guarded) -> None:
    with SessionStore.from_url(guarded.url("gateway"), lease_s=0.1) as store, short_waits():
        staging = store.environment("checkout", "staging")
        with pytest.raises(NotDurableError, match="and 0 had it in time; INFO"):
            staging.put("ci-42", replicas=1)
    assert guarded.denied() == []


def test_the_command_line_works(guarded: Guarded, view: View) -> None:
    url = guarded.url("gateway")
    place = ("-p", "checkout", "-e", "staging")
    for arguments in (
        ("put", "ci-42", *place, "--override", "ovr_a"),
        ("get", "ci-42", *place),
        ("list", *place),
        ("reset", "ci-42", *place),
        ("delete", "ci-42", *place),
        ("catalog", "show", "-p", "checkout"),
        ("keys", "create", "ci"),
        ("keys", "list"),
    ):
        cli(url, *arguments)
    assert view.stats.lease_left_s is not None
    for options in (place, ()):
        assert re.search(r"^checkout +staging +[0-9a-f]", cli(url, "views", *options), re.MULTILINE)
    command = [sys.executable, "-m", "sessionstore.cli", "watch", *place, "--redis-url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stderr is not None
        assert watch.stdout is not None
        try:
            _await_subscribers(guarded, 2)
            cli(url, "put", "ci-43", *place)
            assert "ci-43" in watch.stdout.readline()
        finally:
            watch.send_signal(signal.SIGINT)
    assert guarded.denied() == []


def _await_subscribers(guarded: Guarded, count: int) -> None:
    channel = "ss:{checkout}:staging:changes"
    deadline = time.monotonic() + 20
    while dict(guarded.raw.pubsub_shardnumsub(channel))[channel.encode()] < count:
        assert time.monotonic() < deadline, "watch did not subscribe"
        time.sleep(0.02)


@pytest.mark.parametrize(("user", "scripts"), [("gateway", tuple(script_names())), ("proxy-checkout", VIEW_SCRIPTS)])
def test_the_users_may_run_each_command_of_their_scripts(user: str, scripts: Sequence[str]) -> None:
    [line] = re.findall(rf"^user {user} (.*)$", ACL.read_text(encoding="utf-8"), re.MULTILINE)
    allowed = {word[1:].split("|")[0] for word in re.findall(r"\+\S+", line.replace(")", " "))}
    for name in scripts:
        used = {command.lower() for command in re.findall(r"redis\.p?call\('(\w+)'", load_script(name).text)}
        assert used <= allowed, name


#: What the proxy's user must not do, command by command.
DENIED = {
    "read API keys": "HGETALL ss:keys",
    "read an API key": "HGET ss:keys x",
    "make an API key": "HSET ss:keys x y",
    "remove an API key": "HDEL ss:keys x",
    "name the API keys in a script's KEYS": "EVAL 'return 0' 1 ss:keys",
    "read API keys in a script": """EVAL 'return redis.call("HGETALL", "ss:keys")' 0""",
    "make an API key in a script": """EVAL 'return redis.call("HSET", "ss:keys", "x", "y")' 0""",
    "write a catalog": "HSET ss:{checkout}:staging:catalog json x",
    "write a catalog's mocks": "HSET ss:{checkout}:staging:catalog:mocks ovr_x x",
    "write a catalog's scenarios": "HSET ss:{checkout}:staging:catalog:scenarios scn_x x",
    "remove a catalog": "DEL ss:{checkout}:staging:catalog",
    "write a catalog in a script": """EVAL 'return redis.call("HSET", KEYS[1], "x", "y")' 1 ss:{checkout}:s:catalog""",
    "register an environment": "SADD ss:{checkout}:environments x",
    "unregister an environment": "SREM ss:{checkout}:environments staging",
    "unregister all environments": "DEL ss:{checkout}:environments",
    "empty the server": "FLUSHALL",
    "empty the database": "FLUSHDB",
    "read another project": "HGETALL ss:{search}:staging:head",
    "change another project": "HSET ss:{search}:staging:head rev 1",
    "read another project's catalog": "HGET ss:{search}:staging:catalog json",
    "take a lease on another project": "ZADD ss:{search}:staging:leases 1 x",
    "listen to another project": "SSUBSCRIBE ss:{search}:staging:changes",
    "publish to another project": "SPUBLISH ss:{search}:staging:changes x",
    "read another prefix": "HGET other:{checkout}:staging:head rev",
    "change another prefix": "HSET other:{checkout}:staging:head rev 1",
    "listen to another prefix": "SSUBSCRIBE other:{checkout}:staging:changes",
    "publish to another prefix": "SPUBLISH other:{checkout}:staging:changes x",
    "listen to everything": "PSUBSCRIBE *",
    "publish outside shards": "PUBLISH ss:{checkout}:staging:changes x",
    "raise a rate limit": "INCRBY ss:limits:{ss:keys}:0123456789ab -1000",
    "list keys": "KEYS *",
    "scan keys": "SCAN 0",
    "pick a key": "RANDOMKEY",
    "copy a key": "COPY ss:{checkout}:staging:head ss:{checkout}:staging:views",
    "dump a key": "DUMP ss:{checkout}:staging:head",
    "rename a key": "RENAME ss:{checkout}:staging:head ss:{checkout}:staging:views",
    "move a key": "MOVE ss:{checkout}:staging:head 1",
    "use another database": "SELECT 1",
    "empty the server in a script": """EVAL 'return redis.call("FLUSHALL")' 0""",
    "load a script": "SCRIPT LOAD 'return 0'",
    "define a function": "FUNCTION LIST",
    "drop the scripts": "SCRIPT FLUSH",
    "kill a script": "SCRIPT KILL",
    "read users": "ACL LIST",
    "make a user": "ACL SETUSER x on",
    "read settings": "CONFIG GET *",
    "change settings": "CONFIG SET maxmemory 1",
    "list connections": "CLIENT LIST",
    "kill connections": "CLIENT KILL TYPE normal",
    "watch commands": "MONITOR",
    "stop the server": "SHUTDOWN NOSAVE",
    "save": "SAVE",
    "replicate": "REPLICAOF 127.0.0.1 1",
    "load a module": "MODULE LIST",
}


@pytest.mark.parametrize("act", DENIED)
def test_the_proxys_user_must_not(act: str, guarded: Guarded) -> None:
    guarded.raw.hset("ss:keys", "x", "y")
    with (
        guarded.client("proxy-checkout") as client,
        pytest.raises(redis.ResponseError, match=r"permission|can't (run|access)"),
    ):
        client.execute_command(*shlex.split(DENIED[act]))
    assert guarded.raw.dbsize() == 1
    assert guarded.raw.hgetall("ss:keys") == {b"x": b"y"}


def test_the_gateways_user_can_not_harm_the_server_or_other_prefixes(guarded: Guarded) -> None:
    with guarded.client("gateway") as client:
        for command in ("FLUSHALL", "KEYS *", "CONFIG GET *", "ACL LIST", "HGET other:x y", "SHUTDOWN"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split(" "))


def test_another_database_needs_select(guarded: Guarded) -> None:
    urls = [guarded.url(user).removesuffix("0") + "3" for user in PASSWORDS]
    with SessionStore.from_url(urls[0]) as store, pytest.raises(StoreUnavailableError, match="denies this user"):
        store.ping()
    try:
        for user in PASSWORDS:
            guarded.raw.execute_command("ACL", "SETUSER", user, "+select")
        with (
            SessionStore.from_url(urls[0]) as store,
            SessionStore.from_url(urls[1]) as proxy,
            proxy.environment("checkout", "staging").view() as view,
        ):
            store.environment("checkout", "staging").put("ci-42")
            assert view.get("ci-42") is not None
    finally:
        for user in PASSWORDS:
            guarded.raw.execute_command("ACL", "SETUSER", user, "-select")


def test_nobody_gets_in_without_a_password(guarded: Guarded) -> None:
    with guarded.server.client() as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    url = f"redis://127.0.0.1:{guarded.server.port}/0"
    with SessionStore.from_url(url) as store, pytest.raises(StoreUnavailableError):
        store.ping()


def test_the_file_is_one_that_redis_reads(tmp_path: Path) -> None:
    # Given: the file as it is, without the test's own user.
    require_redis_server()
    with (
        RedisServer(aclfile=str(ACL)) as server,
        server.client(username="gateway", password="gateway-password") as client,
    ):
        assert client.ping()
