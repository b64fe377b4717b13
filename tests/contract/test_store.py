"""What a store promises, with each driver and server."""

from __future__ import annotations

import string
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from sessionstore import (
    AsyncEnvironment,
    AsyncSessionStore,
    CorruptDataError,
    EnvironmentNotFoundError,
    InvalidFieldError,
    InvalidInputError,
    InvalidOverrideError,
    InvalidQueryError,
    InvalidScenarioError,
    InvalidSessionKeyError,
    InvalidSlugError,
    OverrideNotFoundError,
    PreconditionFailedError,
    Session,
    SessionNotFoundError,
    SessionPatch,
    SessionStoreError,
    StoreClosedError,
    TooFewViewsError,
)

from ..support.adapter import DAY_MS, Backend

EVERYTHING: dict[str, Any] = {
    "label": "CI run 4821",
    "scenario": "scn_paymentDeclined",
    "overrides": ["ovr_b", "ovr_a"],
    "global_delay_ms": 5,
    "global_delay_max_ms": 7,
}
CLEARED: dict[str, Any] = {
    "label": None,
    "scenario": None,
    "overrides": (),
    "global_delay_ms": 0,
    "global_delay_max_ms": 0,
}


async def test_a_missing_session_is_none(staging: AsyncEnvironment) -> None:
    assert await staging.get("ci-42") is None


async def test_a_put_creates_a_session_with_nothing_set(staging: AsyncEnvironment) -> None:
    session = await staging.put("ci-42")

    assert (session.project, session.environment, session.session_key) == ("checkout", "staging", "ci-42")
    assert (session.label, session.scenario, session.overrides) == (None, None, ())
    assert (session.global_delay_ms, session.global_delay_max_ms) == (0, 0)
    assert session.revision == 1
    assert session.created_at == session.last_seen_at == session.expires_at - DAY_MS
    assert await staging.get("ci-42") == session


async def test_a_put_sets_the_given_properties(staging: AsyncEnvironment) -> None:
    session = await staging.put("ci-42", **EVERYTHING)

    assert {name: getattr(session, name) for name in EVERYTHING} == {**EVERYTHING, "overrides": ("ovr_b", "ovr_a")}
    assert await staging.get("ci-42") == session


@pytest.mark.parametrize("name", EVERYTHING)
async def test_an_omitted_property_stays_and_none_clears_it(staging: AsyncEnvironment, name: str) -> None:
    # Given a session with everything set
    before = await staging.put("ci-42", **EVERYTHING)

    # When one property is cleared
    cleared: Any = [] if name == "overrides" else None
    session = await staging.put("ci-42", **{name: cleared})

    # Then only that one differs
    default = {"overrides": (), "global_delay_ms": 0, "global_delay_max_ms": 0}.get(name)
    for other in EVERYTHING:
        assert getattr(session, other) == (default if other == name else getattr(before, other))
    assert session.revision == before.revision + 1
    assert session.created_at == before.created_at


class TestReplace:
    @pytest.mark.parametrize("kept", [None, *EVERYTHING])
    async def test_clears_what_is_omitted(self, staging: AsyncEnvironment, kept: str | None) -> None:
        # Given what an earlier run has left
        before = await staging.put("ci-42", **EVERYTHING)

        # When the session is set anew
        patch: Any = {} if kept is None else {kept: EVERYTHING[kept]}
        session = await staging.put("ci-42", replace=True, **patch)

        # Then it has what was given, and nothing else
        cleared = {name: value for name, value in CLEARED.items() if name != kept}
        assert {name: getattr(session, name) for name in cleared} == cleared
        assert kept is None or getattr(session, kept) == getattr(before, kept)
        assert session.revision == before.revision + 1
        assert await staging.get("ci-42") == session

    async def test_takes_no_revision_where_nothing_changes(self, staging: AsyncEnvironment) -> None:
        first = await staging.put("ci-42", replace=True, **EVERYTHING)

        second = await staging.put("ci-42", replace=True, **EVERYTHING)

        assert (second.revision, second.created_at) == (first.revision, first.created_at)

    async def test_creates_a_session_and_takes_a_patch(self, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42", SessionPatch(label="x"), replace=True, if_none_match="*")

        assert session.label == "x"
        with pytest.raises(PreconditionFailedError):
            await staging.put("ci-42", replace=True, if_none_match="*")
        assert await staging.get("ci-42") == session


async def test_overrides_keep_their_order_and_lose_duplicates(staging: AsyncEnvironment) -> None:
    session = await staging.put("ci-42", overrides=iter(["ovr_b", "ovr_a", "ovr_b", "ovr_c", "ovr_a"]))

    assert session.overrides == ("ovr_b", "ovr_a", "ovr_c")


async def test_overrides_are_the_exact_set(staging: AsyncEnvironment) -> None:
    # Given an override that was activated by itself
    await staging.activate("ci-42", "ovr_byHand")

    assert (await staging.put("ci-42", overrides=["ovr_a"])).overrides == ("ovr_a",)


async def test_a_new_order_is_a_change(staging: AsyncEnvironment) -> None:
    first = await staging.put("ci-42", overrides=["ovr_a", "ovr_b"])

    second = await staging.put("ci-42", overrides=["ovr_b", "ovr_a"])

    assert second.overrides == ("ovr_b", "ovr_a")
    assert second.revision == first.revision + 1


async def test_a_repeated_put_keeps_the_revision_and_counts_as_seen(
    backend: Backend, staging: AsyncEnvironment
) -> None:
    first = await staging.put("ci-42", **EVERYTHING)
    backend.raw.hset(backend.key("ci-42"), "lastSeenAt", first.last_seen_at - 1_000)

    second = await staging.put("ci-42", **EVERYTHING)

    assert second.revision == first.revision
    assert second.last_seen_at >= first.last_seen_at
    assert second.effect is not None
    assert second.effect.revision == first.revision


async def test_sessions_and_environments_do_not_affect_each_other(
    store: AsyncSessionStore, staging: AsyncEnvironment
) -> None:
    await staging.put("ci-42", label="here")
    elsewhere = [store.environment("checkout", "production"), store.environment("search", "staging")]

    for environment in elsewhere:
        assert await environment.get("ci-42") is None
        assert (await environment.put("ci-42", label=environment.name)).revision == 1
    await elsewhere[0].delete("ci-42")

    assert (await staging.get("ci-42") or pytest.fail("it is gone")).label == "here"
    assert await staging.get("CI-42") is None


async def test_an_environment_knows_its_names(staging: AsyncEnvironment) -> None:
    assert (staging.project, staging.name) == ("checkout", "staging")


class TestToggle:
    async def test_activate_creates_the_session(self, staging: AsyncEnvironment) -> None:
        session = await staging.activate("ci-42", "ovr_a")

        assert session.overrides == ("ovr_a",)
        assert await staging.get("ci-42") == session

    async def test_activate_and_deactivate_are_idempotent(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-42", label="x", overrides=["ovr_a"])
        on = await staging.activate("ci-42", "ovr_b")
        assert on.overrides == ("ovr_a", "ovr_b")
        assert (await staging.activate("ci-42", "ovr_b")).revision == on.revision

        off = await staging.deactivate("ci-42", "ovr_a")
        assert off.overrides == ("ovr_b",)
        assert (await staging.deactivate("ci-42", "ovr_a")).revision == off.revision
        assert off.label == "x"

    async def test_deactivate_needs_a_session(self, staging: AsyncEnvironment) -> None:
        with pytest.raises(SessionNotFoundError, match="'ci-42' on checkout/staging"):
            await staging.deactivate("ci-42", "ovr_a")
        assert await staging.get("ci-42") is None

    async def test_a_session_has_at_most_two_hundred_overrides(self, staging: AsyncEnvironment) -> None:
        ids = [f"ovr_{number}" for number in range(200)]
        await staging.put("ci-42", overrides=ids[:199])
        assert len((await staging.activate("ci-42", ids[199])).overrides) == 200

        with pytest.raises(InvalidOverrideError, match="200"):
            await staging.activate("ci-42", "ovr_more")
        assert (await staging.activate("ci-42", ids[0])).overrides == tuple(ids)


class TestResetAndDelete:
    async def test_reset_clears_and_keeps(self, staging: AsyncEnvironment) -> None:
        before = await staging.put("ci-42", **EVERYTHING)

        session = await staging.reset("ci-42")

        assert (session.label, session.scenario, session.overrides) == (None, None, ())
        assert (session.global_delay_ms, session.global_delay_max_ms) == (0, 0)
        assert session.created_at == before.created_at
        assert session.revision == before.revision + 1
        assert (await staging.reset("ci-42")).revision == session.revision

    async def test_reset_needs_a_session(self, staging: AsyncEnvironment) -> None:
        with pytest.raises(SessionNotFoundError):
            await staging.reset("ci-42")

    async def test_delete_removes(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-42")

        deletion = await staging.delete("ci-42")

        assert deletion
        assert deletion.existed
        assert await staging.get("ci-42") is None

    async def test_deleting_a_missing_session_succeeds(self, staging: AsyncEnvironment) -> None:
        deletion = await staging.delete("ci-42")

        assert not deletion
        assert deletion.effect is not None

    async def test_a_new_session_inherits_nothing_from_a_deleted_one(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-42", **EVERYTHING)
        await staging.delete("ci-42")

        session = await staging.put("ci-42", label="new")

        assert (session.scenario, session.overrides, session.global_delay_ms) == (None, (), 0)
        assert session.revision == 3


class TestViews:
    async def test_without_a_view_too_few_confirm_a_write_which_is_made(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-42", overrides=["ovr_a"])
        writes = [
            (staging.put("ci-42", label="x", views=1), 2),
            (staging.activate("ci-42", "ovr_b", views=1), 3),
            (staging.deactivate("ci-42", "ovr_a", views=1), 4),
            (staging.reset("ci-42", views=1), 5),
            (staging.delete("ci-42", views=1), None),
        ]
        for number, (write, revision) in enumerate(writes, 2):
            with pytest.raises(TooFewViewsError, match=f"revision {number} of checkout/staging") as caught:
                await write
            assert (caught.value.revision, caught.value.confirmed) == (revision, 0)
        assert await staging.get("ci-42") is None
        # None asked for is none too few
        await staging.put("ci-42", views=0)

    @pytest.mark.parametrize("views", [-1, 1001, True, 1.0, "1"])
    async def test_that_are_no_number_of_views(self, staging: AsyncEnvironment, views: Any) -> None:
        with pytest.raises(InvalidQueryError, match="views must be"):
            await staging.put("ci-42", views=views)

    async def test_cant_be_counted_without_waiting(self, staging: AsyncEnvironment) -> None:
        with pytest.raises(InvalidQueryError, match="does not wait"):
            await staging.put("ci-42", views=1, wait=False)
        assert await staging.get("ci-42") is None


class TestPreconditions:
    async def test_if_none_match_creates_only(self, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42", if_none_match="*", label="first")

        with pytest.raises(PreconditionFailedError, match="is at revision 1"):
            await staging.put("ci-42", if_none_match="*", label="second")
        assert await staging.get("ci-42") == session

    async def test_if_match_holds_at_a_revision(self, staging: AsyncEnvironment) -> None:
        first = await staging.put("ci-42", label="1")
        second = await staging.put("ci-42", label="2", if_match=first.revision)
        third = await staging.put("ci-42", label="3", if_match=[7, second.revision])

        for write in (
            staging.put("ci-42", label="4", if_match=second.revision),
            staging.put("ci-42", label="4", if_match=()),
            staging.reset("ci-42", if_match=first.revision),
            staging.delete("ci-42", if_match=[first.revision, second.revision]),
        ):
            with pytest.raises(PreconditionFailedError):
                await write
        assert await staging.get("ci-42") == third

        await staging.reset("ci-42", if_match=third.revision)
        assert await staging.delete("ci-42", if_match="*")

    async def test_if_match_star_needs_an_existing_session(self, staging: AsyncEnvironment) -> None:
        for write in (
            staging.put("ci-42", if_match="*"),
            staging.put("ci-42", if_match=1),
            staging.delete("ci-42", if_match="*"),
            staging.reset("ci-42", if_match="*"),
        ):
            with pytest.raises(PreconditionFailedError, match="does not exist"):
                await write
        assert await staging.get("ci-42") is None

    @pytest.mark.parametrize("if_match", ["7", "", [None], ["7"], [1.0], True, 1.5, object()])
    async def test_rejects_invalid_preconditions(self, staging: AsyncEnvironment, if_match: Any) -> None:
        with pytest.raises(InvalidQueryError, match="if_match"):
            await staging.put("ci-42", if_match=if_match)
        with pytest.raises(InvalidQueryError, match="if_none_match"):
            await staging.put("ci-42", if_none_match="1")  # type: ignore[arg-type]


ID_TAIL = (string.ascii_letters + string.digits + "_-") * 2

#: Valid properties, each at its bound.
GOOD: list[dict[str, Any]] = [
    {"label": ""},
    {"label": "x" * 200},
    {"label": "\U0001f600" * 200},
    {"label": 'line\nbreak \x00 \x7f "quotes" \\ / é'},
    {"scenario": "scn_a"},
    {"scenario": "scn_" + ID_TAIL[:124]},
    {"overrides": ["ovr_a"]},
    {"overrides": ["ovr_" + ID_TAIL[:124]]},
    {"overrides": [f"ovr_{number}" for number in range(200)]},
    {"overrides": [f"ovr_{number}" for number in range(200)] * 2},
    {"overrides": ()},
    {"global_delay_ms": 0},
    {"global_delay_ms": 120_000},
    {"global_delay_max_ms": 120_000},
]

#: Invalid properties: one past the bound, or of another type.
BAD: list[tuple[dict[str, Any], type[InvalidInputError], str]] = [
    ({"label": "x" * 201}, InvalidFieldError, "at most 200"),
    ({"label": 5}, InvalidFieldError, "label must be a string"),
    ({"label": b"x"}, InvalidFieldError, "label must be a string"),
    ({"label": "\ud800"}, InvalidFieldError, "surrogate"),
    ({"scenario": "scn_"}, InvalidScenarioError, "is not a scenario id"),
    ({"scenario": "scn_" + ID_TAIL[:125]}, InvalidScenarioError, "is not a scenario id"),
    ({"scenario": "ovr_a"}, InvalidScenarioError, "is not a scenario id"),
    ({"scenario": "scn_a\n"}, InvalidScenarioError, "is not a scenario id"),
    ({"scenario": "scn_é"}, InvalidScenarioError, "is not a scenario id"),
    ({"scenario": ""}, InvalidScenarioError, "is not a scenario id"),
    ({"scenario": 5}, InvalidScenarioError, "must be a string"),
    ({"overrides": None}, InvalidFieldError, r"send \[\] for none"),
    ({"overrides": "ovr_a"}, InvalidFieldError, "must be a list"),
    ({"overrides": 5}, InvalidFieldError, "must be a list"),
    ({"overrides": ["ovr_a", None]}, InvalidOverrideError, "None is not an override id"),
    ({"overrides": ["ovr_a", ["ovr_b"]]}, InvalidOverrideError, "is not an override id"),
    ({"overrides": ["ovr_"]}, InvalidOverrideError, "is not an override id"),
    ({"overrides": ["scn_a"]}, InvalidOverrideError, "is not an override id"),
    ({"overrides": ["ovr_a "]}, InvalidOverrideError, "is not an override id"),
    ({"overrides": ['ovr_a","ovr_b']}, InvalidOverrideError, "is not an override id"),
    ({"overrides": ["ovr_" + ID_TAIL[:125]]}, InvalidOverrideError, "is not an override id"),
    ({"overrides": [f"ovr_{number}" for number in range(201)]}, InvalidFieldError, "at most 200"),
    ({"global_delay_ms": -1}, InvalidFieldError, "globalDelayMs must be between 0 and 120000"),
    ({"global_delay_ms": 120_001}, InvalidFieldError, "globalDelayMs must be between"),
    ({"global_delay_ms": 1.0}, InvalidFieldError, "whole number"),
    ({"global_delay_ms": True}, InvalidFieldError, "whole number"),
    ({"global_delay_ms": "5"}, InvalidFieldError, "whole number"),
    ({"global_delay_max_ms": -1}, InvalidFieldError, "globalDelayMaxMs must be between"),
    ({"global_delay_max_ms": 120_001}, InvalidFieldError, "globalDelayMaxMs must be between"),
]


class TestBounds:
    @pytest.mark.parametrize("patch", GOOD, ids=range(len(GOOD)))
    async def test_accepts_properties_at_their_bounds(self, staging: AsyncEnvironment, patch: dict[str, Any]) -> None:
        session = await staging.put("ci-42", **patch)

        [(name, value)] = patch.items()
        assert getattr(session, name) == (tuple(dict.fromkeys(value)) if name == "overrides" else value)
        assert await staging.get("ci-42") == session

    @pytest.mark.parametrize(("patch", "error", "message"), BAD, ids=range(len(BAD)))
    async def test_rejects_properties_past_their_bounds(
        self, staging: AsyncEnvironment, patch: dict[str, Any], error: type[InvalidInputError], message: str
    ) -> None:
        before = await staging.put("ci-42", **EVERYTHING)

        with pytest.raises(error, match=message) as caught:
            await staging.put("ci-42", **{"label": "changed", **patch})

        assert isinstance(caught.value, ValueError)
        assert await staging.get("ci-42") == before

    @pytest.mark.parametrize("override", ["", "a", "scn_a", "ovr_", None, 5, "ovr_ä", "ovr_a\n"])
    async def test_toggles_check_the_id(self, staging: AsyncEnvironment, override: Any) -> None:
        with pytest.raises(InvalidOverrideError):
            await staging.activate("ci-42", override)
        with pytest.raises(InvalidOverrideError):
            await staging.deactivate("ci-42", override)

    @pytest.mark.parametrize(
        "key", ["", "  ", "\n\r\u2028", "a\x00b", "a\tb", "a\x7fb", "a\x85b", "\ud800", None, 5, b"x"]
    )
    async def test_every_method_checks_the_key(self, staging: AsyncEnvironment, key: Any) -> None:
        calls: list[Awaitable[object]] = [
            staging.get(key),
            staging.put(key),
            staging.activate(key, "ovr_a"),
            staging.deactivate(key, "ovr_a"),
            staging.reset(key),
            staging.delete(key),
            staging.touch({key: 5}),
        ]
        for call in calls:
            with pytest.raises(InvalidSessionKeyError):
                await call

    @pytest.mark.parametrize("slug", ["", "-a", ".a", "a" * 65, "a b", "a:b", "a{b", "a}b", "a/b", "é", "a\n", None, 5])
    async def test_rejects_invalid_slugs(self, store: AsyncSessionStore, slug: Any) -> None:
        with pytest.raises(InvalidSlugError, match="project"):
            store.environment(slug, "staging")
        with pytest.raises(InvalidSlugError, match="environment"):
            store.environment("checkout", slug)

    async def test_accepts_slugs_at_the_bound(self, store: AsyncSessionStore) -> None:
        environment = store.environment("A" * 64, "0" + "z-._Z"[:5] * 12 + "abc")
        assert (await environment.put("ci-42")).revision == 1


#: Keys that are awkward in URLs, in Redis, in JSON or in Lua.
KEYS = ["a/b", "a%2Fb", "a?b#c", "..", "a b", "a\u00a0b", "é", "\U0001f600", "{x}", "a:b:c", '"\\', "*", "x" * 200, "'"]


@pytest.mark.parametrize("key", KEYS)
async def test_a_key_may_hold_anything(staging: AsyncEnvironment, key: str) -> None:
    session = await staging.put(key, label="x")

    assert session.session_key == key
    assert await staging.get(key) == session
    assert [found.session_key for found in (await staging.list()).sessions] == [key]
    assert await staging.touch({key: session.last_seen_at}) == 1
    assert await staging.delete(key)


async def test_every_method_normalises_the_key(staging: AsyncEnvironment) -> None:
    raw = " \tci\r\n-\u202842\u2029 "
    session = await staging.put(raw, label="x")

    assert session.session_key == "ci-42"
    assert await staging.get("ci-42") == await staging.get(raw) == session
    assert (await staging.activate(raw, "ovr_a")).session_key == "ci-42"
    assert (await staging.deactivate(raw, "ovr_a")).session_key == "ci-42"
    assert (await staging.reset(raw)).session_key == "ci-42"
    assert await staging.touch({raw: session.last_seen_at}) == 1
    assert await staging.delete(raw)
    assert await staging.get("ci-42") is None


class TestCatalog:
    @pytest.fixture(autouse=True)
    def catalog(self, backend: Backend) -> None:
        """A catalog with one published mock, and one scenario with a local mock."""
        base = f"{backend.prefix}:{{checkout}}:staging:catalog"
        backend.raw.hset(base, "hash", "1")
        backend.raw.hset(f"{base}:mocks", "ovr_a", "{}")
        backend.raw.hset(f"{base}:local", "ovr_local", "scn_a")
        backend.raw.hset(f"{base}:scenarios", "scn_a", "{}")

    async def test_accepts_ids_of_the_catalog(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-42", scenario="scn_a", overrides=["ovr_a"])
        await staging.deactivate("ci-42", "ovr_a")
        await staging.activate("ci-42", "ovr_a")

    async def test_rejects_ids_that_the_catalog_lacks(self, staging: AsyncEnvironment) -> None:
        before = await staging.put("ci-42", scenario="scn_a", overrides=["ovr_a"])
        cases: list[tuple[Awaitable[object], type[SessionStoreError], str]] = [
            (staging.put("ci-42", overrides=["ovr_a", "ovr_x"]), InvalidOverrideError, "'ovr_x'"),
            (staging.put("ci-42", overrides=["ovr_local"]), InvalidOverrideError, "'ovr_local' belongs to a scenario"),
            (staging.put("ci-42", label="x", scenario="scn_x"), InvalidScenarioError, "'scn_x'"),
            (staging.activate("ci-42", "ovr_x"), OverrideNotFoundError, "'ovr_x'"),
            (staging.activate("ci-42", "ovr_local"), InvalidOverrideError, "belongs to a scenario"),
            (staging.deactivate("ci-42", "ovr_x"), OverrideNotFoundError, "'ovr_x'"),
            (staging.deactivate("ci-42", "ovr_local"), InvalidOverrideError, "belongs to a scenario"),
        ]
        for call, error, message in cases:
            with pytest.raises(error, match=message):
                await call
        assert await staging.get("ci-42") == before


async def test_an_unregistered_environment_is_unknown_if_the_project_has_registered_any(
    backend: Backend, store: AsyncSessionStore
) -> None:
    backend.raw.sadd(f"{backend.prefix}:{{checkout}}:environments", "production")
    staging = store.environment("checkout", "staging")
    calls: list[Awaitable[object]] = [
        staging.get("ci-42"),
        staging.put("ci-42"),
        staging.activate("ci-42", "ovr_a"),
        staging.deactivate("ci-42", "ovr_a"),
        staging.reset("ci-42"),
        staging.delete("ci-42"),
        staging.list(),
    ]
    for call in calls:
        with pytest.raises(EnvironmentNotFoundError, match="'checkout' has no environment 'staging'"):
            await call
    assert (await store.environment("checkout", "production").put("ci-42")).revision == 1


class TestList:
    async def test_lists_the_newest_seen_first(self, backend: Backend, staging: AsyncEnvironment) -> None:
        sessions = await _sessions_seen_at(backend, staging, {"a": 3, "b": 1, "c": 2})

        page = await staging.list()

        assert [session.session_key for session in page.sessions] == ["a", "c", "b"]
        assert page.sessions == tuple(sessions[key] for key in ("a", "c", "b"))
        assert page.next_cursor is None

    async def test_lists_nothing_without_sessions(self, staging: AsyncEnvironment) -> None:
        page = await staging.list()
        assert (page.sessions, page.next_cursor) == ((), None)

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 11])
    async def test_pages_hold_each_session_once(self, backend: Backend, staging: AsyncEnvironment, limit: int) -> None:
        # Given ten sessions, most seen at the same time, and an index with expired members
        times = {f"k{number}": 5 if number < 7 else number for number in range(10)}
        await _sessions_seen_at(backend, staging, times)
        backend.raw.zadd(
            f"{backend.prefix}:{{checkout}}:staging:index", {"gone1": _at(5), "gone2": _at(8), "z": _at(0)}
        )

        listed: list[str] = []
        pages = 0
        cursor = None
        while True:
            page = await staging.list(limit=limit, cursor=cursor)
            listed += [session.session_key for session in page.sessions]
            pages += 1
            cursor = page.next_cursor
            if cursor is None:
                break
            assert len(page.sessions) == limit

        assert listed == sorted(times, key=lambda key: (times[key], key), reverse=True)
        assert pages <= 10 // limit + 1

    async def test_a_touch_does_not_shift_the_next_page(self, backend: Backend, staging: AsyncEnvironment) -> None:
        await _sessions_seen_at(backend, staging, {"a": 1, "b": 2, "c": 3, "d": 4})
        first = await staging.list(limit=2)
        await staging.put("a")
        await staging.delete("c")

        second = await staging.list(limit=2, cursor=first.next_cursor)

        assert [session.session_key for session in first.sessions] == ["d", "c"]
        assert [session.session_key for session in second.sessions] == ["b"]

    async def test_a_page_holds_at_most_a_hundred_sessions(self, staging: AsyncEnvironment) -> None:
        for number in range(103):
            await staging.put(f"ci-{number}", wait=False)

        page = await staging.list(limit=100)
        assert len(page.sessions) == 100
        assert len((await staging.list(limit=100, cursor=page.next_cursor)).sessions) == 3
        assert len((await staging.list()).sessions) == 50

    @pytest.mark.parametrize("limit", [0, -1, 101, 1.0, "5", None, True])
    async def test_rejects_invalid_limits(self, staging: AsyncEnvironment, limit: Any) -> None:
        with pytest.raises(InvalidQueryError, match="limit must be a whole number from 1 to 100"):
            await staging.list(limit=limit)

    @pytest.mark.parametrize(
        "cursor", ["", "x", "é", "AAAA", "WzEsMl0", "WzEuNSwiYSJd", 5, b"WzUsImEiXQ", "W" * 10_000]
    )
    async def test_rejects_an_invalid_cursor(self, staging: AsyncEnvironment, cursor: Any) -> None:
        with pytest.raises(InvalidQueryError, match="cursor"):
            await staging.list(cursor=cursor)


class TestTouch:
    async def test_touch_records_when_sessions_were_seen(self, backend: Backend, staging: AsyncEnvironment) -> None:
        sessions = await _sessions_seen_at(backend, staging, {"a": 1, "b": 2})
        seen = sessions["a"].last_seen_at + 5

        assert await staging.touch({"a": seen, "b": seen - 100_000, "gone": seen}) == 2

        assert (await staging.get("a") or pytest.fail("gone")).last_seen_at == seen
        assert await staging.get("b") == sessions["b"]
        assert await staging.get("gone") is None

    async def test_touch_takes_any_number_of_sessions(self, backend: Backend, staging: AsyncEnvironment) -> None:
        seen = {f"ci-{number}": 5 for number in range(401)}
        await staging.put("ci-0")
        await staging.put("ci-400")

        assert await staging.touch(seen) == 2
        assert await staging.touch({}) == 0

    async def test_touch_keeps_the_later_of_two_times(self, backend: Backend, staging: AsyncEnvironment) -> None:
        session = (await _sessions_seen_at(backend, staging, {"a": 1}))["a"]
        seen = session.last_seen_at

        await staging.touch({" a": seen + 9, "a": seen + 5})

        assert (await staging.get("a") or pytest.fail("gone")).last_seen_at == seen + 9

    @pytest.mark.parametrize("time", [-1, 1.5, "5", None, True, 2**53])
    async def test_touch_rejects_invalid_times(self, backend: Backend, staging: AsyncEnvironment, time: Any) -> None:
        session = (await _sessions_seen_at(backend, staging, {"a": 1}))["a"]
        batch: dict[str, Any] = {"a": session.last_seen_at + 5, **{f"k{number}": 1 for number in range(300)}}

        # Then an invalid time in a later batch keeps the first batch from being sent
        with pytest.raises(InvalidFieldError, match="milliseconds"):
            await staging.touch({**batch, "z": time})
        assert await staging.get("a") == session


class TestExpiry:
    async def test_the_ttl_is_settable(self, backend: Backend) -> None:
        async with backend.store(ttl_s=1.5, lease_s=0.1) as store:
            session = await store.environment("checkout", "staging").put("ci-42")
        assert session.expires_at == session.last_seen_at + 1_500

    async def test_a_session_expires(self, backend: Backend, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42", **EVERYTHING)
        backend.raw.hset(backend.key("ci-42"), "expiresAt", session.last_seen_at)

        assert await staging.get("ci-42") is None
        assert (await staging.list()).sessions == ()
        assert await staging.touch({"ci-42": session.last_seen_at}) == 0
        assert (await staging.put("ci-42")).label is None

    async def test_a_put_keeps_a_session_alive(self, backend: Backend, staging: AsyncEnvironment) -> None:
        session = await staging.put("ci-42", label="x")
        backend.raw.hset(backend.key("ci-42"), "expiresAt", session.last_seen_at + 60_000)

        repeated = await staging.put("ci-42", label="x")

        assert repeated.expires_at >= session.expires_at
        assert await staging.get("ci-42") == repeated

    @pytest.mark.parametrize(
        "options",
        [
            {"ttl_s": 0},
            {"ttl_s": 0.0005},
            {"ttl_s": 366 * 86_400 + 1},
            {"ttl_s": "5"},
            {"ttl_s": float("nan")},
            {"ttl_s": None},
            {"lease_s": 0.05},
            {"deadline_s": 0},
            {"deadline_s": float("inf")},
            {"prefix": ""},
            {"prefix": "a:b"},
            {"prefix": "a" * 33},
        ],
        ids=str,
    )
    async def test_rejects_settings_out_of_bounds(self, backend: Backend, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError, match=r"must be"):
            backend.store(**options)


class TestEffect:
    async def test_every_write_returns_its_effect(self, staging: AsyncEnvironment) -> None:
        writes: list[Callable[[], Awaitable[Any]]] = [
            lambda: staging.put("ci-42", label="x"),
            lambda: staging.activate("ci-42", "ovr_a"),
            lambda: staging.deactivate("ci-42", "ovr_a"),
            lambda: staging.reset("ci-42"),
            lambda: staging.delete("ci-42"),
        ]
        for revision, write in enumerate(writes, 1):
            effect = (await write()).effect
            assert (effect.revision, effect.confirmed, effect.expired, effect.waited) == (revision, 0, 0, True)
            assert effect.commit_s > 0
            assert effect.effective_s >= 0

    async def test_a_write_can_return_at_commit(self, backend: Backend, staging: AsyncEnvironment) -> None:
        # Given a view that never confirms
        first = await staging.put("ci-42")
        base = f"{backend.prefix}:{{checkout}}:staging"
        backend.raw.zadd(f"{base}:leases", {"lease": first.last_seen_at + 60_000})
        backend.raw.zadd(f"{base}:acks", {"lease": 1})

        writes: list[Callable[[], Awaitable[Any]]] = [
            lambda: staging.put("ci-42", label="x", wait=False),
            lambda: staging.activate("ci-42", "ovr_a", wait=False),
            lambda: staging.deactivate("ci-42", "ovr_a", wait=False),
            lambda: staging.reset("ci-42", wait=False),
            lambda: staging.delete("ci-42", wait=False),
        ]
        for write in writes:
            effect = (await write()).effect
            assert (effect.waited, effect.confirmed, effect.effective_s) == (False, 0, 0.0)

    async def test_a_read_has_no_effect(self, staging: AsyncEnvironment) -> None:
        await staging.put("ci-42")

        assert (await staging.get("ci-42") or pytest.fail("gone")).effect is None
        assert (await staging.list()).sessions[0].effect is None


async def test_reports_data_that_it_did_not_write(backend: Backend, staging: AsyncEnvironment) -> None:
    await staging.put("ci-42")
    backend.raw.hset(f"{backend.prefix}:{{checkout}}:staging:head", "rev", "x")

    with pytest.raises(CorruptDataError, match="did not write"):
        await staging.put("ci-42", label="x")


async def test_a_closed_store_refuses_calls(backend: Backend) -> None:
    store = backend.store()
    environment = store.environment("checkout", "staging")
    await environment.get("ci-42")
    await store.aclose()
    await store.aclose()

    with pytest.raises(StoreClosedError):
        await environment.get("ci-42")
    with pytest.raises(StoreClosedError):
        await store.ping()


async def test_ping(store: AsyncSessionStore) -> None:
    await store.ping()


async def test_a_session_is_frozen(staging: AsyncEnvironment) -> None:
    session = await staging.put("ci-42")

    with pytest.raises(AttributeError):
        session.label = "x"  # type: ignore[misc]
    assert isinstance(session, Session)
    assert isinstance(session, msgspec.Struct)


class TestCallersClient:
    @pytest.mark.parametrize("decode_responses", [False, True])
    async def test_a_store_leaves_the_callers_client_open(self, backend: Backend, decode_responses: bool) -> None:
        if backend.kind == "cluster":
            pytest.skip("redis-py leaves connections of this client open")
        client = backend.client(decode_responses=decode_responses)
        async with backend.on_client(client, lease_s=0.1) as store:
            environment = store.environment("checkout", "staging")
            session = await environment.put("ci-42", **EVERYTHING)
            assert await environment.get("ci-42") == session
            assert (await environment.list()).sessions == (session,)
            assert await environment.touch({"ci-42": session.last_seen_at}) == 1

        if backend.driver == "sync":
            assert client.exists(backend.key("ci-42")) == 1
            client.close()
        else:
            assert await client.exists(backend.key("ci-42")) == 1
            await client.aclose()
            if backend.kind == "sentinels":
                await client.connection_pool.sentinel_manager.aclose()

    async def test_rejects_other_clients_than_one_primarys(self, backend: Backend) -> None:
        with pytest.raises(InvalidInputError, match="of one primary"):
            backend.on_client(object())


def _at(number: int) -> int:
    """A past time, in ms since 1970, within a new session's TTL."""
    return _BASE[0] + number * 1000


_BASE = [0]


async def _sessions_seen_at(backend: Backend, staging: AsyncEnvironment, times: dict[str, int]) -> dict[str, Session]:
    """Put sessions, and move the time each was last seen into the past."""
    sessions = {}
    for key, number in times.items():
        session = await staging.put(key, wait=False)
        _BASE[0] = session.last_seen_at - 600_000 if _BASE[0] == 0 else _BASE[0]
        backend.raw.hset(backend.key(key), "lastSeenAt", _at(number))
        backend.raw.zadd(f"{backend.prefix}:{{checkout}}:staging:index", {key: _at(number)})
        found = await staging.get(key)
        assert found is not None
        sessions[key] = found
    return sessions
