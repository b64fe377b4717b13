"""Which errors mean that a primary is elsewhere, and what is known of where."""

from __future__ import annotations

import pytest
import redis.exceptions as redis_errors
from redis.crc import key_slot

from sessionstore.transport.topology import Address, Place, hash_tag, is_misrouted, must_move, without_address


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("ss:{checkout}:staging:s:ci-{42}", "checkout"),
        ("ss:keys", "ss:keys"),
        ("a{}b", "a{}b"),
        ("a{b", "a{b"),
        ("a}b{c}", "c"),
        ("{{x}}", "{x"),
    ],
)
def test_the_hash_tag_is_the_part_of_a_key_that_redis_hashes(key: str, tag: str) -> None:
    assert hash_tag(key) == tag
    assert key_slot(tag.encode()) == key_slot(key.encode())


@pytest.mark.parametrize(
    ("error", "moves"),
    [
        (redis_errors.MovedError("7 host:1"), True),
        (redis_errors.AskError("7 host:1"), False),
        (redis_errors.TryAgainError("x"), False),
        (redis_errors.ClusterDownError("x"), True),
        (redis_errors.MasterDownError("x"), True),
        (redis_errors.BusyLoadingError("x"), True),
        (redis_errors.ReadOnlyError("x"), True),
        (redis_errors.ResponseError("NOREPLICAS Not enough good replicas to write."), True),
    ],
)
def test_misrouted(error: Exception, moves: bool) -> None:
    assert is_misrouted(error)
    assert must_move(error) is moves


@pytest.mark.parametrize(
    "error",
    [
        b"a reply",
        redis_errors.ResponseError("OOM"),
        redis_errors.ConnectionError("x"),
        redis_errors.NoScriptError("x"),
        redis_errors.NoPermissionError("x"),
        TimeoutError(),
    ],
)
def test_not_misrouted(error: object) -> None:
    assert not is_misrouted(error)


def test_what_a_caller_is_told_of_a_slot_that_moves() -> None:
    assert type(without_address(redis_errors.MovedError("7 host:1"))) is redis_errors.TryAgainError
    error = redis_errors.ReadOnlyError("x")
    assert without_address(error) is error


class FakeLocator:
    def find(self, tag: str) -> Address:
        return f"node-of-{tag}", 1

    def primaries(self) -> list[Address]:
        return [("a", 1), ("b", 2)]

    def remap(self, address: Address) -> Address:
        return f"outside-{address[0]}", address[1]


class TestPlace:
    def test_a_doubt_counts_from_its_time(self) -> None:
        place = Place(FakeLocator(), "checkout")
        assert place.find() == ("node-of-checkout", 1)

        place.doubt(ConnectionResetError(), 7.0)
        assert place.doubted_at == 7.0
        assert place.take_named() is None

    def test_without_a_tag_it_is_another_primary_each_time(self) -> None:
        place = Place(FakeLocator(), "")
        found = [place.find() for _ in range(20)]
        assert found in (10 * [("a", 1), ("b", 2)], 10 * [("b", 2), ("a", 1)])

    def test_a_pause_is_no_doubt(self) -> None:
        place = Place(FakeLocator(), "checkout")
        place.doubt(redis_errors.TryAgainError(), 7.0)
        place.doubt(redis_errors.AskError("7 host:1"), 7.0)
        assert place.doubted_at < 0
        assert place.take_named() is None

    def test_the_address_that_a_server_names_is_tried_once(self) -> None:
        place = Place(FakeLocator(), "checkout")
        place.doubt(redis_errors.MovedError("7 inside:2"), 7.0)

        assert place.take_named() == ("outside-inside", 2)
        assert place.take_named() is None

    def test_a_server_that_names_no_host_means_its_own(self) -> None:
        place = Place(FakeLocator(), "checkout")
        place.doubt(redis_errors.MovedError("7 :2"), 7.0)
        assert place.take_named() is None

        place.find()
        place.doubt(redis_errors.MovedError("7 :2"), 7.0)
        assert place.take_named() == ("outside-node-of-checkout", 2)

    @pytest.mark.parametrize("info", [b"role:master\r\n", "run_id:x\nrole:master\n", "", None])
    def test_a_primary_and_a_server_that_does_not_tell_are_believed(self, info: bytes | str | None) -> None:
        Place(FakeLocator(), "checkout").check(info)

    @pytest.mark.parametrize("info", [b"x:1\r\nrole:slave\r\n", "role:replica"])
    def test_a_replica_is_refused(self, info: bytes | str) -> None:
        with pytest.raises(redis_errors.ReadOnlyError):
            Place(FakeLocator(), "checkout").check(info)
