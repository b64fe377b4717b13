"""A session's own TTL, its last writer, and its last look-up."""

from __future__ import annotations

from typing import Any

import pytest

from sessionstore import (
    AsyncEnvironment,
    AsyncSessionStore,
    InvalidFieldError,
    InvalidInputError,
    Session,
    SessionDetails,
    SessionPatch,
)

from ..support.adapter import DAY_MS, Backend
from ..support.polling import eventually


def details_of(session: Session | None) -> SessionDetails:
    assert session is not None
    assert session.details is not None
    return session.details


def life_ms(session: Session | None) -> int:
    assert session is not None
    return session.expires_at - session.last_seen_at


class TestOwnTtl:
    async def test_is_how_long_a_session_lives_after_its_last_use(self, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42", ttl_seconds=3600)

        assert details_of(session).ttl_seconds == 3600
        assert life_ms(session) == 3_600_000
        found = await staging.get("ci-42")
        assert found == session
        assert details_of(found) == session.details
        # When only another property is set, then it stays
        assert life_ms(await staging.put("ci-42", label="x")) == 3_600_000

    @pytest.mark.parametrize("seconds", [60, 86_400])
    async def test_has_bounds(self, staging: AsyncEnvironment, seconds: int) -> None:
        assert life_ms(await staging.put("ci-42", ttl_seconds=seconds)) == seconds * 1000

    @pytest.mark.parametrize(
        ("seconds", "message"),
        [
            (59, "at least 60"),
            (0, "at least 60"),
            (-60, "at least 60"),
            (86_401, "at most 86400 seconds, this store's TTL"),
            (2**70, "at most 86400"),
            (60.0, "whole number"),
            ("60", "whole number"),
            (True, "whole number"),
        ],
    )
    async def test_past_its_bounds_is_rejected(self, staging: AsyncEnvironment, seconds: Any, message: str) -> None:
        with pytest.raises(InvalidFieldError, match=f"ttlSeconds must be .*{message}"):
            await staging.put("ci-42", ttl_seconds=seconds)
        assert await staging.get("ci-42") is None

    async def test_none_is_the_store_s(self, staging: AsyncEnvironment) -> None:
        first = await staging.put("ci-42", ttl_seconds=60)

        second = await staging.put("ci-42", ttl_seconds=None)

        assert second.revision == first.revision + 1
        assert (details_of(second).ttl_seconds, life_ms(second)) == (None, DAY_MS)

    async def test_replace_and_reset_give_it_up(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-42", ttl_seconds=60)
        assert life_ms(await staging.put("ci-42", SessionPatch(label="x"), replace=True)) == DAY_MS
        await staging.put("ci-42", ttl_seconds=60)
        assert life_ms(await staging.reset("ci-42")) == DAY_MS
        await staging.put("ci-42", replace=True, ttl_seconds=60)
        assert (await staging.reset_prefix("ci-")).count == 1
        assert life_ms(await staging.get("ci-42")) == DAY_MS

    async def test_the_same_again_takes_no_revision(self, staging: AsyncEnvironment) -> None:
        first = await staging.put("ci-42", replace=True, label="x", ttl_seconds=60)

        assert (await staging.put("ci-42", replace=True, label="x", ttl_seconds=60)).revision == first.revision
        assert (await staging.put("ci-42", ttl_seconds=61)).revision == first.revision + 1

    async def test_touches_follow_it(self, backend: Backend, staging: AsyncEnvironment) -> None:
        # Given a session of a minute that has half of it left
        session = await staging.put("ci-42", ttl_seconds=60)
        half_s = {"lastSeenAt": session.last_seen_at - 30_000, "expiresAt": session.expires_at - 30_000}
        backend.raw.hset(backend.key("ci-42"), mapping=half_s)

        await staging.touch({"ci-42": session.last_seen_at})

        assert life_ms(await staging.get("ci-42")) == 60_000

    async def test_ends_a_session_that_is_not_used(self, backend: Backend, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42", ttl_seconds=60)
        assert backend.raw.pexpiretime(backend.key("ci-42")) == session.expires_at + 10_000
        backend.raw.hset(backend.key("ci-42"), "expiresAt", session.last_seen_at)

        assert await staging.get("ci-42") is None
        assert (await staging.list()).sessions == ()

    async def test_views_have_the_new_expiry_when_the_write_returns(
        self, backend: Backend, staging: AsyncEnvironment
    ) -> None:
        async with backend.store(lease_s=2.0) as other, other.environment("checkout", "staging").view() as view:
            for ttl_seconds in (3600, 60, 7200, None):
                session = await staging.put("ci-42", ttl_seconds=ttl_seconds)

                served = view.peek("ci-42")
                assert served == session
                assert served is not None
                assert served.details is None

            # And one that is short-lived ends in time
            await staging.put("ci-42", ttl_seconds=60)
            follower = view._follower
            assert follower.replica.next_expiry_ms == (await staging.get("ci-42")).expires_at  # type: ignore[union-attr]

    async def test_a_view_in_use_keeps_the_shortest_session_alive(
        self, backend: Backend, staging: AsyncEnvironment
    ) -> None:
        async with staging.view(touch_interval_s=3600) as view:
            # Four touches in the least TTL, whatever the view was told
            assert view._follower.touch_interval_s == 15


class TestLastWriter:
    async def test_is_who_the_store_says_it_is(self, backend: Backend) -> None:
        async with backend.store(actor="Zürich nightly") as store:
            staging = store.environment("checkout", "staging")

            session = await staging.put("ci-42", label="x")

            assert details_of(session) == SessionDetails(None, session.last_seen_at, "Zürich nightly", None)
            assert details_of(await staging.get("ci-42")) == session.details
            assert [details_of(found) for found in (await staging.list()).sessions] == [session.details]
            # An environment may say otherwise
            other = store.environment("checkout", "staging", actor="somebody else")
            assert details_of(await other.put("ci-42", label="y")).modified_by == "somebody else"
            assert details_of(await staging.put("ci-42", label="y")).modified_by == "somebody else"

    async def test_is_nobody_by_default(self, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42")

        assert details_of(session) == SessionDetails(modified_at=session.last_seen_at)

    async def test_is_set_by_every_kind_of_write(self, store: AsyncSessionStore) -> None:
        def by(actor: str) -> AsyncEnvironment:
            return store.environment("checkout", "staging", actor=actor)

        assert details_of(await by("1").put("ci-42", label="x")).modified_by == "1"
        assert details_of(await by("2").activate("ci-42", "ovr_a")).modified_by == "2"
        assert details_of(await by("3").deactivate("ci-42", "ovr_a")).modified_by == "3"
        assert details_of(await by("4").reset("ci-42")).modified_by == "4"
        await by("5").put("ci-42", label="x")
        assert (await by("6").reset_prefix("ci-")).count == 1
        assert details_of(await by("7").get("ci-42")).modified_by == "6"

    async def test_is_who_applied_a_catalog_that_changed_it(self, backend: Backend) -> None:
        async with backend.store(actor="author") as store:
            staging = store.environment("checkout", "staging", actor="ci")
            await staging.put("used", overrides=["ovr_gone"], ttl_seconds=60)
            await staging.put("other")

            await store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}}})

            used, other = await staging.get("used"), await staging.get("other")
            assert (details_of(used).modified_by, details_of(other).modified_by) == ("author", "ci")
            assert (details_of(used).ttl_seconds, life_ms(used)) == (60, 60_000)

    async def test_a_repeated_write_is_none(self, store: AsyncSessionStore, backend: Backend) -> None:
        await store.environment("checkout", "staging", actor="first").put("ci-42", label="x")
        backend.raw.hset(backend.key("ci-42"), "modifiedAt", 5)

        again = await store.environment("checkout", "staging", actor="second").put("ci-42", label="x")

        assert (details_of(again).modified_at, details_of(again).modified_by) == (5, "first")

    @pytest.mark.parametrize("actor", ["x" * 257, "a\nb", "\x00", 5, None])
    async def test_must_be_printable_and_short(self, backend: Backend, store: AsyncSessionStore, actor: Any) -> None:
        with pytest.raises(InvalidInputError, match="actor must be printable text of at most 256"):
            backend.store(actor=actor)
        if actor is not None:
            with pytest.raises(InvalidInputError, match="actor"):
                store.environment("checkout", "staging", actor=actor)
        async with backend.store(actor="x" * 256) as other:
            session = await other.environment("checkout", "staging").put("ci-42")
            assert details_of(session).modified_by == "x" * 256


class TestLastLookUp:
    async def test_is_set_by_touches_only(self, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42")
        assert details_of(session).looked_up_at is None
        assert details_of(await staging.get("ci-42")).looked_up_at is None

        await staging.touch({"ci-42": session.last_seen_at - 5})

        assert details_of(await staging.get("ci-42")).looked_up_at == session.last_seen_at - 5
        for write in (staging.put("ci-42", label="x"), staging.put("ci-42", replace=True), staging.reset("ci-42")):
            assert details_of(await write).looked_up_at == session.last_seen_at - 5

    async def test_is_when_a_view_looked_the_session_up(self, backend: Backend, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42")
        async with staging.view(touch_interval_s=0.05) as view:
            view.get("ci-42")

            await eventually(lambda: backend.raw.hget(backend.key("ci-42"), "lookedUpAt"))

        looked_up_at = details_of(await staging.get("ci-42")).looked_up_at
        assert looked_up_at is not None
        assert looked_up_at >= session.last_seen_at

    async def test_ends_with_the_session(self, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42")
        await staging.touch({"ci-42": session.last_seen_at})
        await staging.delete("ci-42")

        assert details_of(await staging.put("ci-42")).looked_up_at is None


async def test_a_session_of_an_earlier_release_has_no_details(backend: Backend, staging: AsyncEnvironment) -> None:
    await staging.put("ci-42", label="x")
    backend.raw.hdel(backend.key("ci-42"), "modifiedAt")

    assert details_of(await staging.get("ci-42")) == SessionDetails()
