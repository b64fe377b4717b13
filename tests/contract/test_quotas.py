"""Quotas: sessions of an environment, bytes of a project's sessions, environments without a catalog."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sessionstore import (
    AsyncSessionStore,
    InvalidInputError,
    QuotaExceededError,
    SessionStoreError,
    StoreUnavailableError,
)

from ..support.adapter import DAY_MS, Backend
from .test_prefix import fill


def snapshot(backend: Backend) -> dict[str, Any]:
    """Everything in Redis below the prefix: hashes and sorted sets."""
    raw = backend.raw
    return {
        key: raw.hgetall(key) if raw.type(key) in ("hash", b"hash") else raw.zrange(key, 0, -1, withscores=True)
        for key in raw.keys(f"{backend.prefix}:*")
    }


def bounded(backend: Backend, **quotas: Any) -> AsyncSessionStore:
    return backend.store(lease_s=0.1, **quotas)


class TestSessions:
    async def test_a_write_that_creates_one_too_many_changes_nothing(self, backend: Backend) -> None:
        async with bounded(backend, max_sessions=2) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("a")
            await staging.activate("b", "ovr_a")
            before = snapshot(backend)

            for refused in (staging.put("c"), staging.activate("c", "ovr_a")):
                with pytest.raises(QuotaExceededError, match=r"staging .* quota of 2 sessions.*Delete") as caught:
                    await refused
                assert caught.value.code == "quota_exceeded"
            assert snapshot(backend) == before

            # Those that exist may change, and another environment has sessions of its own
            await staging.put("a", label="x" * 200)
            await store.environment("checkout", "live").put("c")
            # A deletion makes room
            await staging.delete("a")
            await staging.put("c")
            with pytest.raises(QuotaExceededError):
                await staging.put("a")

    async def test_an_expired_session_makes_room(self, backend: Backend) -> None:
        async with bounded(backend, max_sessions=1, ttl_s=0.2) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("a")
            while await staging.get("a"):
                pass

            await staging.put("b")

    async def test_sessions_from_before_are_counted(self, backend: Backend) -> None:
        # Given more sessions than one script counts, written without a count, one of them expired
        names = [f"old-{n}" for n in range(149)]
        fill(backend, names)
        backend.raw.hset(backend.key("old-0"), "expiresAt", time.time_ns() // 1_000_000 - 1)

        async with bounded(backend, max_sessions=149) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("new")
            with pytest.raises(QuotaExceededError):
                await staging.put("newer")
        usage = f"{backend.prefix}:{{checkout}}:usage"
        assert int(backend.raw.hget(usage, "sessions:staging")) == 149
        assert int(backend.raw.hget(usage, "bytes")) == sum(500 + len(name) + len("[]") for name in [*names[1:], "new"])

    async def test_sessions_of_other_stores_are_counted(self, backend: Backend, store: AsyncSessionStore) -> None:
        async with bounded(backend, max_sessions=2) as bound:
            await bound.environment("checkout", "staging").put("a")
            await store.environment("checkout", "staging").put("b")

            with pytest.raises(QuotaExceededError):
                await bound.environment("checkout", "staging").put("c")

            # and such a store has no quota
            await store.environment("checkout", "staging").put("c")

    @pytest.mark.parametrize("damage", ["no usage", "no ledger", "wrong type", "negative", "unflagged"])
    async def test_a_damaged_count_is_made_anew(self, backend: Backend, damage: str) -> None:
        async with bounded(backend, max_sessions=2) as store:
            staging = store.environment("checkout", "staging")
            await staging.put("a")
            await staging.put("b")
            usage, ledger, head = (
                f"{backend.prefix}:{{checkout}}:{name}" for name in ("usage", "ledger", "staging:head")
            )
            match damage:
                case "no usage":
                    backend.raw.delete(usage)
                case "no ledger":
                    backend.raw.delete(ledger)
                case "wrong type":
                    backend.raw.set(usage, "x")
                case "negative":
                    backend.raw.hset(usage, "sessions:staging", -1)
                case "unflagged":
                    backend.raw.hdel(head, "counted")

            with pytest.raises(QuotaExceededError):
                await staging.put("c")

            assert int(backend.raw.hget(usage, "sessions:staging")) == 2

    async def test_a_count_that_was_begun_and_not_ended_is_ended(self, backend: Backend) -> None:
        # Given a store that has died while it counted
        fill(backend, ["a"])
        backend.raw.hset(f"{backend.prefix}:{{checkout}}:usage", mapping={"bytes": 0, "id": "other"})

        async with bounded(backend, max_sessions=1) as store:
            with pytest.raises(QuotaExceededError):
                await store.environment("checkout", "staging").put("b")


class TestBytes:
    async def test_a_write_that_takes_too_many_changes_nothing(self, backend: Backend) -> None:
        async with bounded(backend, max_project_bytes=1300) as store:
            staging, live = (store.environment("checkout", name) for name in ("staging", "live"))
            await staging.put("a", label="x" * 100)
            await live.put("b", label="é" * 50)
            before = snapshot(backend)

            for refused in (
                staging.put("c"),
                staging.put("a", label="x" * 200),
                live.put("b", overrides=["ovr_" + "a" * 100]),
                live.activate("b", "ovr_" + "a" * 100),
            ):
                with pytest.raises(QuotaExceededError, match=r"'checkout' would exceed its quota of 1300 bytes"):
                    await refused
            assert snapshot(backend) == before

            # What takes no more is allowed, and makes room
            await staging.put("a", label="y" * 100)
            await staging.put("a", label="")
            await live.activate("b", "ovr_" + "a" * 70)
            # Another project has bytes of its own
            await store.environment("search", "staging").put("c")

    async def test_the_last_byte_may_be_taken(self, backend: Backend) -> None:
        async with bounded(backend, max_project_bytes=500 + len("ab") + len("[]") + 7) as store:
            staging = store.environment("checkout", "staging")
            with pytest.raises(QuotaExceededError):
                await staging.put("ab", label="x" * 8)
            await staging.put("ab", label="x" * 7)
            await staging.reset("ab")
            await staging.put("ab", scenario="scn_abc")


class TestEnvironments:
    async def test_without_a_catalog_are_bounded(self, backend: Backend) -> None:
        async with bounded(backend, max_environments=2) as store:
            await store.environment("checkout", "a").put("ci-42")
            await store.environment("checkout", "b").put("ci-42")
            before = snapshot(backend)

            with pytest.raises(QuotaExceededError, match=r"'checkout' .* quota of 2 environments"):
                await store.environment("checkout", "c").put("ci-42")
            assert snapshot(backend) == before

            # Those that exist stay usable; other projects have their own
            await store.environment("checkout", "a").put("ci-43")
            await store.environment("search", "c").put("ci-42")
            # A catalog registers one
            await store.project("checkout").apply_catalog({"project": "checkout", "environments": {"c": {}}})
            await store.environment("checkout", "c").put("ci-42")

    async def test_are_counted_until_they_are_forgotten(self, backend: Backend) -> None:
        async with bounded(backend, max_environments=1) as store:
            await store.environment("checkout", "a").put("ci-42")
            head = f"{backend.prefix}:{{checkout}}:a:head"
            unregistered = f"{backend.prefix}:{{checkout}}:unregistered"
            assert backend.raw.zscore(unregistered, "a") == int(backend.raw.hget(head, "keptUntil"))
            assert 0 < backend.raw.pttl(unregistered) <= 31 * DAY_MS

            backend.raw.zadd(unregistered, {"a": time.time_ns() // 1_000_000 - 1})
            await store.environment("checkout", "b").put("ci-42")
            assert backend.raw.zscore(unregistered, "a") is None
            assert backend.raw.zcard(unregistered) == 1


@pytest.mark.parametrize("name", ["max_sessions", "max_project_bytes", "max_environments"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1", 2**53])
def test_an_invalid_quota_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} must be None or a whole number"):
        AsyncSessionStore.embedded(**{name: value})


def test_an_error_of_a_quota_is_no_other_error() -> None:
    assert issubclass(QuotaExceededError, SessionStoreError)
    assert not issubclass(QuotaExceededError, InvalidInputError | StoreUnavailableError)
