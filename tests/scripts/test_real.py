"""What only a real Redis shows: running out of memory, and keys that a script may not use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from sessionstore.protocol.scripts import load_script, script_names

from ..support.redis_server import RedisServer
from ..support.scripts import DAY_MS, Scripts


@pytest.fixture
def full(own_redis: RedisServer, prefix: str) -> Iterator[Scripts]:
    """A Redis with a session and a catalog, that has no memory left for more."""
    with own_redis.client(decode_responses=True) as client:
        scripts = Scripts(client, prefix)
        scripts.put("ci-42", "+label", "x", "+overrides", '["ovr_a"]', op="a1")
        scripts.redis.hset(scripts.session("ci-42"), "lastSeenAt", 5)
        for name in script_names():
            scripts.redis.script_load(load_script(name).text)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        yield scripts
        scripts.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda scripts: scripts.put("ci-42", "+label", "y"),
        lambda scripts: scripts.put("ci-42", "+label", "x"),
        lambda scripts: scripts.put("new"),
        lambda scripts: scripts.activate("ci-42", "ovr_b"),
        lambda scripts: scripts.deactivate("ci-42", "ovr_a"),
        lambda scripts: scripts.reset("ci-42"),
        lambda scripts: scripts.touch({"ci-42": scripts.now()}),
    ],
    ids=["put", "repeat", "create", "activate", "deactivate", "reset", "touch"],
)
@pytest.mark.parametrize("expiry_moves", [False, True])
def test_out_of_memory_a_script_changes_nothing(
    full: Scripts, write: Callable[[Scripts], object], expiry_moves: bool
) -> None:
    if expiry_moves:
        full.redis.config_set("maxmemory", "0")
        full.redis.hset(full.session("ci-42"), "expiresAt", full.now() + DAY_MS // 2)
        full.redis.config_set("maxmemory", "1")
    full.messages()
    before = full.everything()

    with pytest.raises(redis.exceptions.OutOfMemoryError):
        write(full)

    assert full.everything() == before
    assert full.messages() == []


def test_out_of_memory_a_delete_works(full: Scripts) -> None:
    reply = full.delete("ci-42", op="a2")

    assert (reply["existed"], reply["rev"]) == (True, 2)
    assert full.stored() == {}
    assert full.redis.hmget(full.head, "rev", "layout", "id", "maxTtl") == ["2", "2", "a2", str(DAY_MS)]
    assert [message["type"] for message in full.messages()][-1] == "delete"


def test_out_of_memory_reads_work(full: Scripts) -> None:
    assert full.get("ci-42")["session"]["label"] == "x"


@pytest.mark.parametrize("scripts", ["redis"], indirect=True)
def test_a_key_or_channel_that_is_not_in_keys_is_refused(scripts: Scripts) -> None:
    """The other tests count on it: on a real Redis they run each script as a user who may use KEYS and no more."""
    for text in (
        "return redis.call('GET', ARGV[1])",
        "return redis.call('PUBLISH', ARGV[1], '')",
    ):
        scripts.eval_restricted(text, ["a", "b"], ["a"])
        with pytest.raises(redis.ResponseError, match=r"can't (access|publish)|permission"):
            scripts.eval_restricted(text, ["a", "b"], ["c"])
