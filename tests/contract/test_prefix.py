"""The sessions whose keys begin alike: they are listed, deleted and reset together."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sessionstore import (
    AsyncEnvironment,
    AsyncSessionStore,
    EnvironmentNotFoundError,
    InvalidQueryError,
    Session,
    TooFewViewsError,
)

from ..support.adapter import DAY_MS, Backend
from ..support.polling import eventually

#: What no session key can begin with.
IMPOSSIBLE: list[Any] = ["", " ci", "\tci", "a\nb", "a\u2028b", "a\x00b", "x" * 201, "x" * 199 + " ", "\ud800", None, 5]


async def keys_of(staging: AsyncEnvironment, prefix: str, limit: int = 100) -> list[str]:
    """The keys of all pages, newest seen first."""
    keys: list[str] = []
    cursor = None
    while True:
        page = await staging.list(limit, cursor, prefix)
        keys += [session.session_key for session in page.sessions]
        cursor = page.next_cursor
        if cursor is None:
            return keys


def fill(backend: Backend, keys: list[str]) -> None:
    """Store sessions, seen now, by hand."""
    now = time.time_ns() // 1_000_000
    fields = {"rev": 1, "createdAt": now, "lastSeenAt": now, "expiresAt": now + DAY_MS}
    pipeline = backend.raw.pipeline()
    for key in keys:
        pipeline.hset(backend.key(key), mapping=fields)
    pipeline.zadd(f"{backend.prefix}:{{checkout}}:staging:index", dict.fromkeys(keys, now))
    pipeline.hset(
        f"{backend.prefix}:{{checkout}}:staging:head", mapping={"rev": 1, "layout": 2, "id": "a", "maxTtl": DAY_MS}
    )
    pipeline.execute()


class TestList:
    async def test_has_the_sessions_whose_keys_begin_so(self, staging: AsyncEnvironment) -> None:
        names = ["ci-1", "ci-12", "ci-2", "CI-1", "ci", "ci*", "ci 1", "é-1"]
        for name in names:
            await staging.put(name)

        for prefix in ("ci-", "ci-1", "c", "ci*", "ci ", "é", "ci-12", "none"):
            expected = {name for name in names if name.startswith(prefix)}
            assert set(await keys_of(staging, prefix)) == expected
            assert set(await keys_of(staging, prefix, limit=1)) == expected

    @pytest.mark.parametrize("limit", [1, 3, 4, 100])
    async def test_pages_hold_each_session_once(self, backend: Backend, staging: AsyncEnvironment, limit: int) -> None:
        # Given sessions among others, and members of the index that have expired
        for number in range(4):
            await staging.put(f"ci-{number}")
            await staging.put(f"other-{number}")
            backend.raw.zadd(f"{backend.prefix}:{{checkout}}:staging:index", {f"ci-gone-{number}": 10**12 + number})

        keys = await keys_of(staging, "ci-", limit)

        assert sorted(keys) == ["ci-0", "ci-1", "ci-2", "ci-3"]

    async def test_a_page_may_be_empty_and_not_the_last(self, backend: Backend, staging: AsyncEnvironment) -> None:
        # Given more sessions of others than one page looks at, by what the index says
        await staging.put("ci-1")
        await staging.touch({"ci-1": 0})
        index = f"{backend.prefix}:{{checkout}}:staging:index"
        backend.raw.zadd(index, {f"other-{number}": 10**13 + number for number in range(20_500)})

        page = await staging.list(prefix="ci-")

        assert page.sessions == ()
        assert page.next_cursor is not None
        assert await keys_of(staging, "ci-") == ["ci-1"]

    @pytest.mark.parametrize("beginning", [one for one in IMPOSSIBLE if one is not None])
    async def test_rejects_what_no_key_begins_with(self, staging: AsyncEnvironment, beginning: Any) -> None:
        with pytest.raises(InvalidQueryError, match="prefix"):
            await staging.list(prefix=beginning)


class TestDelete:
    async def test_removes_the_sessions_whose_keys_begin_so(self, staging: AsyncEnvironment) -> None:
        for name in ("ci-1", "ci-12", "CI-1", "ci", "xci-1"):
            await staging.put(name)

        result = await staging.delete_prefix("ci-")

        assert (result.count, result.more) == (2, False)
        assert result.effect is not None
        assert result.effect.waited
        assert sorted(await keys_of(staging, "c")) == ["ci"]
        assert {session.session_key for session in (await staging.list()).sessions} == {"CI-1", "ci", "xci-1"}
        again = await staging.delete_prefix("ci-")
        assert (again.count, again.more) == (0, False)

    async def test_changes_a_thousand_in_one_call(self, backend: Backend, staging: AsyncEnvironment) -> None:
        fill(backend, [f"ci-{number}" for number in range(1003)])

        first = await staging.delete_prefix("ci-")
        second = await staging.delete_prefix("ci-")

        assert [(one.count, one.more) for one in (first, second)] == [(1000, True), (3, False)]
        assert await keys_of(staging, "ci-") == []

    async def test_counts_no_session_that_has_expired(self, backend: Backend, staging: AsyncEnvironment) -> None:
        await staging.put("ci-1")
        await staging.put("ci-2")
        backend.raw.hset(backend.key("ci-1"), "expiresAt", 1)
        backend.raw.zadd(f"{backend.prefix}:{{checkout}}:staging:index", {"ci-3": 10**13})

        assert (await staging.delete_prefix("ci-")).count == 1

    async def test_is_served_by_every_view_when_it_returns(self, backend: Backend, staging: AsyncEnvironment) -> None:
        async with backend.store(lease_s=2.0) as other, other.environment("checkout", "staging").view() as view:
            for number in range(50):
                await staging.put(f"ci-{number}")
            await staging.put("other")

            result = await staging.delete_prefix("ci-", views=1)

            assert result.count == 50
            assert [view.get(f"ci-{number}") for number in range(50)] == [None] * 50
            assert view.get("other") is not None
            assert result.effect is not None
            assert (result.effect.confirmed, result.effect.revision) == (1, view.stats.revision)
            # Nothing is left to change, and the reports are counted all the same
            assert (await staging.delete_prefix("ci-", views=1)).count == 0

    async def test_a_repeated_call_waits_for_what_the_first_did_not(
        self, backend: Backend, staging: AsyncEnvironment
    ) -> None:
        async with backend.store(lease_s=2.0) as other, other.environment("checkout", "staging").view() as view:
            for _ in range(2):
                await staging.put("ci-1")
                assert (await staging.delete_prefix("ci-", wait=False)).count == 1

                assert (await staging.delete_prefix("ci-")).count == 0

                assert view.get("ci-1") is None

    async def test_without_views_too_few_confirm_it(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-1")

        with pytest.raises(TooFewViewsError, match="The state is set"):
            await staging.delete_prefix("ci-", views=1)

        assert await staging.get("ci-1") is None

    @pytest.mark.parametrize("beginning", IMPOSSIBLE)
    async def test_rejects_what_no_key_begins_with(self, staging: AsyncEnvironment, beginning: Any) -> None:
        await staging.put("ci-1")

        for change in (staging.delete_prefix, staging.reset_prefix):
            with pytest.raises(InvalidQueryError, match="prefix"):
                await change(beginning)
        assert await staging.get("ci-1") is not None

    async def test_an_unregistered_environment_is_unknown(
        self, store: AsyncSessionStore, staging: AsyncEnvironment
    ) -> None:
        await store.project("checkout").apply_catalog({"project": "checkout", "environments": {"live": {}}})

        with pytest.raises(EnvironmentNotFoundError):
            await staging.delete_prefix("ci-")

    async def test_finds_sessions_that_are_looked_up_meanwhile(
        self, backend: Backend, staging: AsyncEnvironment
    ) -> None:
        # Given many sessions that a proxy looks up all the time, which moves them in the index
        names = [f"ci-{number}" for number in range(300)]
        for name in names:
            await staging.put(name, wait=False)
        async with (
            backend.store() as other,
            other.environment("checkout", "staging").view(touch_interval_s=0.01) as view,
        ):
            for name in names:
                view.get(name)

            assert (await staging.delete_prefix("ci-")).count == 300

            await eventually(lambda: view.stats.sessions == 0)


class TestReset:
    async def test_clears_the_sessions_and_keeps_them(self, staging: AsyncEnvironment) -> None:
        for name in ("ci-1", "ci-2", "other"):
            await staging.put(name, label="x", overrides=["ovr_a"])
        empty = await staging.put("ci-3")

        result = await staging.reset_prefix("ci-")

        # Then those are counted in which something was cleared, so that a repeated call ends
        assert (result.count, result.more) == (2, False)
        found: list[Session | None] = [await staging.get(f"ci-{number}") for number in (1, 2, 3)]
        assert [(session.label, session.overrides) for session in found if session] == [(None, ())] * 3
        assert found[2] == empty
        assert (await staging.get("other") or empty).label == "x"
        assert (await staging.reset_prefix("ci-")).count == 0

    async def test_an_empty_label_is_cleared_too(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-1", label="")

        assert (await staging.reset_prefix("ci-")).count == 1
        assert (await staging.get("ci-1") or pytest.fail("it is gone")).label is None
