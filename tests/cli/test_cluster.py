"""The command line on a cluster and under Sentinel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sessionstore import SessionStore

from ..support.polling import await_true
from ..support.redis_cluster import RedisCluster
from ..support.redis_sentinel import RedisSentinels
from .test_cli import Cli


@pytest.fixture(params=["shared_cluster", "shared_sentinels"])
def servers(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def cli(servers: RedisCluster | RedisSentinels, prefix: str) -> Cli:
    return Cli(servers.url, prefix)


def test_sessions_and_views_of_all_projects(
    cli: Cli, servers: RedisCluster | RedisSentinels, prefix: str, tmp_path: Path
) -> None:
    projects = ["billing", "checkout", "login", "search"]
    for project in projects:
        catalog = tmp_path / f"{project}.json"
        catalog.write_text(json.dumps({"project": project, "environments": {"staging": {}}}))
        cli("catalog", "apply", str(catalog), "--yes")
        cli("put", "ci-42", "-p", project, "-e", "staging")
        assert cli.json("list", "-p", project)["sessions"][0]["sessionKey"] == "ci-42"
    with (
        SessionStore.from_url(servers.url, prefix=prefix, lease_s=0.1) as store,
        store.environment("login", "staging").view(),
        store.environment("misspelt", "staging").view(),
    ):
        found = cli.json("views")["environments"]

    assert {place["project"]: len(place["views"]) for place in found} == {
        **dict.fromkeys(projects, 0),
        "login": 1,
        "misspelt": 1,
    }


def test_keys(cli: Cli) -> None:
    made = cli.json("keys", "create", "ci")
    assert [key["id"] for key in cli.json("keys", "list")["keys"]] == [made["id"]]
    cli("keys", "revoke", made["id"])


def test_watch_follows_the_project(servers: RedisCluster | RedisSentinels, prefix: str) -> None:
    environment = {**os.environ, "SESSIONSTORE_REDIS_URL": servers.url, "SESSIONSTORE_PREFIX": prefix}
    command = [sys.executable, "-m", "sessionstore.cli", "watch", "-p", "checkout", "-e", "staging", "--json"]
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watch,
        SessionStore.from_url(servers.url, prefix=prefix, lease_s=0.1) as store,
    ):
        assert watch.stdout is not None
        try:
            primary = (
                servers.primary_of(servers.slot_of("{checkout}"))
                if isinstance(servers, RedisCluster)
                else servers.primary
            )
            with primary.client() as client:
                channel = f"{prefix}:{{checkout}}:staging:changes"
                await_true(lambda: client.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1] == 1, "it watches")
            store.environment("checkout", "staging").put("ci-42", wait=False)

            assert json.loads(watch.stdout.readline())["session"]["sessionKey"] == "ci-42"
            watch.send_signal(signal.SIGINT)
            assert watch.wait(20) == 0
        finally:
            watch.kill()
