"""Where a write that waits for replicas takes their number from, and what it makes of Redis's answers."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from sessionstore import InvalidInputError, OutcomeUnknownError, StoreOptions
from sessionstore.options import StoreConfig
from sessionstore.protocol import calls
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.transport.connect import check_url, take_replicas
from sessionstore.transport.driver import replicated, wait_commands

KEYSPACE = EnvironmentKeyspace("ss", "checkout", "staging")
WRITE: calls.DurableCall[Any] = calls.durable(KEYSPACE, calls.read_head(KEYSPACE), 2)


@pytest.mark.parametrize(
    ("url", "rest", "replicas"),
    [
        ("redis://localhost", "redis://localhost", None),
        ("redis://localhost?replicas=2", "redis://localhost", 2),
        ("redis://localhost/0?db=3&replicas=0", "redis://localhost/0?db=3", 0),
        ("unix:///r.sock?replicas=1&password=a%3Freplicas%3D3", "unix:///r.sock?password=a%3Freplicas%3D3", 1),
        ("redis://replicas=1@localhost", "redis://replicas=1@localhost", None),
    ],
)
def test_a_url_may_name_them(url: str, rest: str, replicas: int | None) -> None:
    options: StoreOptions = {}
    assert take_replicas(url, options) == rest
    assert options.get("replicas") == replicas
    assert check_url(url) == url


def test_the_option_wins_over_the_url() -> None:
    options: StoreOptions = {"replicas": 0}
    assert take_replicas("redis://localhost?replicas=2", options) == "redis://localhost"
    assert options == {"replicas": 0}


@pytest.mark.parametrize("query", ["replicas=11", "replicas=-1", "replicas=", "replicas=٢", "replicas=1&replicas=1"])
def test_a_wrong_number_in_a_url_is_an_error_that_does_not_quote_it(query: str) -> None:
    with pytest.raises(
        InvalidInputError, match="replicas in a Redis URL must be a whole number from 0 to 10"
    ) as caught:
        check_url(f"redis://:s3cret@localhost?{query}")
    assert "s3cret" not in str(caught.value)


def test_what_is_no_url_is_left_to_the_pool() -> None:
    nothing: Any = None
    with pytest.raises(InvalidInputError, match="A Redis URL is"):
        check_url(nothing)


@pytest.mark.parametrize("replicas", [-1, 11, True, 1.0, "1", None])
def test_a_wrong_number_as_an_option_is_an_error(replicas: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"replicas must be a whole number from 0 to 10\."):
        StoreConfig(replicas=replicas)


@pytest.mark.parametrize(("left_s", "wait_ms"), [(2.0, b"1500"), (0.0001, b"1"), (-1.0, b"1")])
def test_redis_never_waits_without_end(left_s: float, wait_ms: bytes) -> None:
    fence, wait = wait_commands(WRITE, left_s)
    assert b"fence" in fence
    assert wait == b"*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$%d\r\n%b\r\n" % (len(wait_ms), wait_ms)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (redis.exceptions.NoPermissionError("User x has no permissions to run the 'wait' command"), "denies this user"),
        (redis.ResponseError("unknown command `WAIT`"), "has no replicas"),
    ],
)
def test_a_server_that_can_not_wait_has_the_write(error: Exception, why: str) -> None:
    result = replicated(WRITE, "reply", 1.0, [b"{}", error])
    assert (result.reply, result.replicas) == ("reply", 0)
    assert why in result.refusal


@pytest.mark.parametrize(
    "error",
    [
        redis.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
        redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
        redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        redis.exceptions.ClusterDownError("The cluster is down"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_server_that_may_be_no_primary_any_more_leaves_the_outcome_unknown(error: Exception, place: int) -> None:
    answers: list[Any] = [b"{}", 2]
    answers[place] = error
    with pytest.raises(OutcomeUnknownError, match="applied whole or not at all") as caught:
        replicated(WRITE, "reply", 1.0, answers)
    assert caught.value.__cause__ is error
