"""What a store promises when Redis holds damaged records: each is an error or is left out, and harms nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from sessionstore import AsyncEnvironment, AsyncSessionStore, CorruptDataError, CorruptSessionError
from sessionstore.session import hash_session_key

from ..support.adapter import DAY_MS, Backend

#: Valid JSON, nested deeper than a decoder goes.
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


class TestDeepRecord:
    async def test_of_a_catalog_is_corrupt(self, backend: Backend, staging: AsyncEnvironment) -> None:
        backend.raw.hset(f"{backend.prefix}:{{checkout}}:staging:catalog", mapping={"digest": "x", "json": DEEP})

        for call in (staging.catalog, staging.scenarios):
            with pytest.raises(CorruptDataError, match="recursion"):
                await call()

    async def test_of_a_view_hides_its_host_only(self, backend: Backend, staging: AsyncEnvironment) -> None:
        async with staging.view():
            [lease] = backend.raw.zrange(f"{backend.prefix}:{{checkout}}:staging:leases", 0, -1)
            lease = lease if isinstance(lease, str) else lease.decode()
            info = json.dumps({"host": "here", "pid": 1, "version": "1", "more": 0}).replace("0}", DEEP + "}")
            backend.raw.hset(f"{backend.prefix}:{{checkout}}:staging:views", lease, info)

            [view] = await staging.views()

        assert (view.id, view.host, view.pid) == (lease, "", 0)


def spoil(**fields: Any) -> Callable[[Any, str], None]:
    """Overwrite fields of a record by hand; None removes one."""

    def write(raw: Any, key: str) -> None:
        for name, value in fields.items():
            if value is None:
                raw.hdel(key, name)
            else:
                raw.hset(key, name, value)

    return write


def another_type(raw: Any, key: str) -> None:
    raw.delete(key)
    raw.set(key, "no hash", px=DAY_MS)


#: What makes a session's record corrupt.
SPOILERS: dict[str, Callable[[Any, str], None]] = {
    "rev nan": spoil(rev="nan"),
    "rev inf": spoil(rev="inf"),
    "rev -1": spoil(rev="-1"),
    "rev 1.5": spoil(rev="1.5"),
    "no rev": spoil(rev=None),
    "no rev and no expiry": spoil(rev=None, expiresAt=None),
    "no expiry": spoil(expiresAt=None),
    "expiry in words": spoil(expiresAt="never"),
    "lastSeenAt nan": spoil(lastSeenAt="nan"),
    "createdAt nan": spoil(createdAt="nan"),
    "label that is not UTF-8": spoil(label=b"\xff"),
    "label with half a character": spoil(label=b"a\xed\xa0\x80"),
    "label that is longer than any": spoil(label="x" * 1025),
    "scenario that is not UTF-8": spoil(scenario=b"scn_\xc3"),
    "overrides that are no JSON": spoil(overrides='["ovr_a"'),
    "overrides that hold JSON": spoil(overrides='["ovr_a"],"rev":9'),
    "overrides that are longer than any": spoil(overrides="[" + ",".join(201 * ['"ovr_' + "x" * 124 + '"']) + "]"),
    "delay nan": spoil(globalDelayMs="nan"),
    "another type": another_type,
}

every_spoiler = pytest.mark.parametrize("spoil_it", SPOILERS.values(), ids=SPOILERS)


class TestSession:
    @pytest.fixture(autouse=True)
    async def given(self, request: pytest.FixtureRequest, backend: Backend, staging: AsyncEnvironment) -> None:
        """Given three sessions, of which one is corrupt."""
        for key in ("a", "bad", "c"):
            await staging.put(key, label=f"grüße {key} 🔑", overrides=["ovr_a"], global_delay_ms=5)
        if "spoil_it" in request.fixturenames:
            request.getfixturevalue("spoil_it")(backend.raw, backend.key("bad"))
        else:
            spoil(rev="nan")(backend.raw, backend.key("bad"))

    @every_spoiler
    async def test_every_call_says_what_to_do_and_changes_nothing(
        self, backend: Backend, staging: AsyncEnvironment, spoil_it: object
    ) -> None:
        before = backend.raw.dump(backend.key("bad")) if backend.real else None
        for call in (
            staging.get("bad"),
            staging.put("bad", label="x"),
            staging.put("bad", replace=True),
            staging.activate("bad", "ovr_b"),
            staging.deactivate("bad", "ovr_a"),
            staging.reset("bad"),
            staging.delete("bad", if_match=1),
        ):
            with pytest.raises(
                CorruptSessionError, match=r"'bad' on checkout/staging is corrupt.*Delete the session"
            ) as caught:
                await call
            assert caught.value.session_key == "bad"
        if backend.real:
            assert backend.raw.dump(backend.key("bad")) == before

    @pytest.mark.parametrize("name", [b"x" * 1025, b"\xff"])
    async def test_name_of_a_writer_is_no_header_of_any_length(
        self, backend: Backend, staging: AsyncEnvironment, name: bytes
    ) -> None:
        # Views are not told the name, so they serve such a session.
        backend.raw.hset(backend.key("a"), "modifiedBy", name)

        with pytest.raises(CorruptSessionError):
            await staging.get("a")

    async def test_longest_texts_are_not_corrupt(self, backend: Backend) -> None:
        scenario = "scn_" + "x" * 124
        overrides = [f"ovr_{number:0>124}" for number in range(200)]
        async with backend.store() as store:
            staging = store.environment("checkout", "staging", actor="ü" * 256)
            written = await staging.put("a", label="🔑" * 200, scenario=scenario, overrides=overrides)
            assert await staging.get("a") == written
            async with staging.view(on_stale="raise") as view:
                assert view.get("a") == written

    @every_spoiler
    async def test_deleting_it_removes_it(self, staging: AsyncEnvironment, spoil_it: object) -> None:
        assert await staging.delete("bad")

        assert await staging.get("bad") is None
        assert not await staging.delete("bad")
        assert (await staging.put("bad", label="new")).label == "new"

    @every_spoiler
    async def test_lists_leave_it_out_and_name_it(self, staging: AsyncEnvironment, spoil_it: object) -> None:
        page = await staging.list()
        assert {session.session_key for session in page.sessions} == {"a", "c"}
        assert page.corrupt == ("bad",)

        # Page by page, it is named once
        sessions: list[str] = []
        corrupt: list[str] = []
        cursor = None
        for _ in range(5):
            page = await staging.list(1, cursor)
            sessions += [session.session_key for session in page.sessions]
            corrupt += page.corrupt
            cursor = page.next_cursor
            if cursor is None:
                break
        assert (sorted(sessions), corrupt, cursor) == (["a", "c"], ["bad"], None)

    @every_spoiler
    async def test_a_view_opens_and_raises_for_it_only(self, backend: Backend, spoil_it: object) -> None:
        # A lease that a busy machine does not let expire
        async with backend.store() as store, store.environment("checkout", "staging").view(on_stale="raise") as view:
            assert view.get("a") is not None
            assert view.get("other") is None
            for look_up in (view.get, view.peek, view.get_by_header):
                with pytest.raises(CorruptSessionError, match="'bad' on checkout/staging"):
                    look_up(" bad ")
            assert (view.stats.sessions, view.stats.corrupt) == (2, 1)

            # Until it is deleted or set anew
            staging = store.environment("checkout", "staging")
            await staging.delete("bad")
            assert view.get("bad") is None
            await staging.put("bad", label="new")
            session = view.get("bad")
            assert session is not None
            assert session.label == "new"
            assert view.stats.corrupt == 0

    async def test_a_view_that_serves_finds_nothing_and_logs_it(
        self, staging: AsyncEnvironment, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with staging.view() as view:
            assert view.get("a") is not None
            assert view.get("bad") is None
            assert view.stats.corrupt == 1

        [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert hash_session_key("bad") in record.getMessage()
        assert "bad" not in record.getMessage()

    async def test_a_prefix_is_deleted_with_it(self, staging: AsyncEnvironment) -> None:
        await staging.put("bad-2", label="x")
        assert (await staging.delete_prefix("bad")).count == 2
        assert (await staging.list()).corrupt == ()

    async def test_a_prefix_is_reset_but_for_it(self, staging: AsyncEnvironment) -> None:
        await staging.put("bad-2", label="x")
        with pytest.raises(CorruptSessionError):
            await staging.reset_prefix("bad")
        session = await staging.get("bad-2")
        assert session is not None
        assert session.label is None

    @every_spoiler
    async def test_touches_pass_over_it(self, backend: Backend, staging: AsyncEnvironment, spoil_it: object) -> None:
        assert await staging.touch({"a": DAY_MS, "bad": DAY_MS, "c": DAY_MS}) == 2

    @every_spoiler
    async def test_a_catalog_is_applied_to_the_others(
        self, store: AsyncSessionStore, staging: AsyncEnvironment, spoil_it: object
    ) -> None:
        report = await store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}}})

        assert report.sessions == 2
        session = await staging.get("a")
        assert session is not None
        assert session.overrides == ()

    async def test_members_of_the_index_that_no_session_can_have_are_passed_over(
        self, backend: Backend, store: AsyncSessionStore, staging: AsyncEnvironment
    ) -> None:
        await staging.delete("bad")
        index = f"{backend.prefix}:{{checkout}}:staging:index"
        for number in range(250):
            backend.raw.zadd(index, {b"\xff%d" % number: 9e14})
        for member, score in (("inf", "inf"), ("half", "9e14"), ("negative", "-5"), ("fraction", "1.5")):
            backend.raw.zadd(index, {member: score})

        keys, cursor = [], None
        for _ in range(10):
            page = await staging.list(1, cursor)
            keys += [session.session_key for session in page.sessions]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert (sorted(keys), cursor) == (["a", "c"], None)
        async with staging.view() as view:
            assert view.get("a") is not None
        assert (await staging.delete_prefix("a")).count == 1
        await store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}}})

    async def test_registered_names_that_are_no_slugs_are_passed_over(
        self, backend: Backend, store: AsyncSessionStore
    ) -> None:
        backend.raw.sadd(f"{backend.prefix}:{{checkout}}:environments", b"\xff", "a:b", "", "staging", "x" * 65)

        assert await store.project("checkout").environments() == ("staging",)
        assert list(await store.project("checkout").live_counts()) == ["staging"]

    async def test_a_view_s_record_that_is_not_utf8_hides_its_host_only(
        self, backend: Backend, staging: AsyncEnvironment
    ) -> None:
        base = f"{backend.prefix}:{{checkout}}:staging"
        async with staging.view():
            [lease] = backend.raw.zrange(f"{base}:leases", 0, -1)
            lease = lease if isinstance(lease, str) else lease.decode()
            backend.raw.hset(f"{base}:views", mapping={lease: b"\xff", f"{lease}:applied": "nan"})
            backend.raw.zadd(f"{base}:leases", {b"\xff": 9e15, "stuck": "inf"})

            views = {view.id: view for view in await staging.views()}
            backend.raw.zrem(f"{base}:leases", b"\xff", "stuck")

        assert (views[lease].host, views[lease].applied_revision) == ("", 0)
        assert views["stuck"].lease_left_ms > DAY_MS
        assert len(views) == 2
