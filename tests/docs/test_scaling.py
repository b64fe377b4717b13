"""The steps of docs/scaling.md move a store from one Redis to a cluster."""

from __future__ import annotations

import re
import subprocess
import textwrap

from sessionstore import SessionStore

from ..support.checkout import ROOT
from ..support.redis_cluster import RedisCluster
from ..support.redis_server import RedisServer

PAGE = ROOT / "docs" / "scaling.md"
SESSIONS = 30


def copy_keys(old: RedisServer, new: RedisCluster) -> str:
    """Run the page's command; returns what it prints."""
    found = re.search(r"^ *```sh\n(.*?)^ *```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    command = textwrap.dedent(found[1])
    for shown, server in (("10.0.0.1:6379", new.nodes[0]), ("10.0.0.9:6379", old)):
        assert shown in command
        command = command.replace(shown, f"127.0.0.1:{server.port}")
    done = subprocess.run(["sh", "-euc", command], capture_output=True, text=True, timeout=40, check=True)
    return done.stdout


def test_the_steps_move_everything_to_the_cluster_and_can_be_repeated(own_redis: RedisServer) -> None:
    # Given one Redis with sessions of two projects, and an API key
    with SessionStore.from_url(own_redis.url) as store:
        for project in ("checkout", "search"):
            for number in range(SESSIONS):
                store.environment(project, "staging").put(f"ci-{number}", label=f"{project} {number}", wait=False)
        key = store.api_keys.create("ci", project="checkout").key

    with RedisCluster() as cluster:
        # When its keys are copied twice
        assert "ERR" not in copy_keys(own_redis, cluster)
        assert "ERR" not in copy_keys(own_redis, cluster)

        # Then a store on the cluster has all of it, takes writes, and its views serve them
        with SessionStore.from_url(cluster.url) as store:
            assert [found.id for found in store.api_keys.list()] == [key.id]
            for project in ("checkout", "search"):
                environment = store.environment(project, "staging")
                with environment.view() as view:
                    for number in range(SESSIONS):
                        session = view.get(f"ci-{number}")
                        assert session is not None
                        assert session.label == f"{project} {number}"
                    effect = environment.put("ci-0", label="moved").effect
                    assert effect is not None
                    assert effect.confirmed == 1
                    session = view.get("ci-0")
                    assert session is not None
                    assert session.label == "moved"

        # And the old one keeps what it had
        with SessionStore.from_url(own_redis.url) as store:
            session = store.environment("search", "staging").get("ci-0")
            assert session is not None
            assert session.label == "search 0"
