"""The commands of an upgrade in CHANGELOG.md run on a real Redis."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import redis

from sessionstore import IncompatibleLayoutError, SessionStore

from ..support.redis_server import RedisServer

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"


def upgrade(url: str, prefix: str) -> None:
    found = re.search(r"^   ```sh\n(.*?)^   ```$", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    commands = textwrap.dedent(found[1]).replace("'ss:", f"'{prefix}:")
    environ = os.environ | {"SESSIONSTORE_REDIS_URL": url}
    subprocess.run(["sh", "-euc", commands], env=environ, check=True, capture_output=True, timeout=20)


def test_the_upgrade_from_layout_1_keeps_the_sessions_and_the_api_keys(shared_redis: RedisServer, prefix: str) -> None:
    # Given two environments in layout 1, each with a view that crashed
    raw = redis.Redis.from_url(shared_redis.url)
    with SessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        environments = [store.environment("checkout", name) for name in ("staging", "uat")]
        for environment in environments:
            environment.put("ci-42", label="old")
            keys = f"{prefix}:{{checkout}}:{environment.name}"
            raw.hdel(f"{keys}:head", "layout", "countableAt", "lostRev", "expiredLeases")
            raw.hset(f"{keys}:head", mapping={"settle": 0, "lost": 1, "expired": 1})
            raw.zadd(f"{keys}:leases", {"015148233ef4df27": 1})
            raw.zadd(f"{keys}:acks", {"015148233ef4df27": 1})
            raw.hset(f"{keys}:views", mapping={"015148233ef4df27": "{}", "015148233ef4df27:at": 1})
            with pytest.raises(IncompatibleLayoutError):
                environment.put("ci-42", label="new")
        store.api_keys.create("ci", project="checkout")

    # When the commands run
    upgrade(shared_redis.url, prefix)

    # Then a new store reads, writes and views each environment
    with SessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        for name in ("staging", "uat"):
            environment = store.environment("checkout", name)
            with environment.view() as view:
                session = view.get("ci-42")
                assert session is not None
                assert session.label == "old"
                effect = environment.put("ci-42", label="new").effect
                assert effect is not None
                assert (effect.confirmed, effect.expired) == (1, 0)
            assert not raw.exists(f"{prefix}:{{checkout}}:{name}:views")
        assert [key.name for key in store.api_keys.list()] == ["ci"]
    raw.close()
