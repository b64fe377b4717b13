"""What a store's catalogs promise, with each driver and server."""

from __future__ import annotations

import copy
import json
from collections.abc import Awaitable
from typing import Any

import pytest

from sessionstore import (
    AsyncEnvironment,
    AsyncSessionStore,
    Catalog,
    CatalogDiff,
    EnvironmentNotFoundError,
    InvalidCatalogError,
    InvalidOverrideError,
    InvalidQueryError,
    InvalidScenarioError,
    LiveCounts,
    LiveViews,
    Mock,
    OutcomeUnknownError,
    OverrideNotFoundError,
    Scenario,
    Session,
    SessionPatch,
    SessionStoreError,
    parse_catalog_document,
)
from sessionstore.protocol.messages import CatalogChanged, SessionSet, decode_change

from ..support.adapter import Backend

STAGING: dict[str, Any] = {
    "mocks": [{"id": "ovr_a", "name": "A"}, {"id": "ovr_b", "name": "B"}],
    "scenarios": [
        {
            "id": "scn_x",
            "name": "X",
            "urlId": "x",
            "mocks": ["ovr_a", "ovr_own"],
            "localMocks": [{"id": "ovr_own", "name": "Own"}],
        },
        {"id": "scn_y", "name": "Y", "urlId": "y"},
    ],
}
CATALOG = Catalog(
    (Mock("ovr_a", "A"), Mock("ovr_b", "B")),
    (
        Scenario("scn_x", "X", "x", ("ovr_a", "ovr_own"), (Mock("ovr_own", "Own"),)),
        Scenario("scn_y", "Y", "y"),
    ),
)


def document(**environments: Any) -> dict[str, Any]:
    return {"project": "checkout", "environments": environments}


def without_b() -> dict[str, Any]:
    less = copy.deepcopy(STAGING)
    del less["mocks"][1]
    return less


async def state(staging: AsyncEnvironment, key: str) -> Session:
    session = await staging.get(key)
    assert session is not None
    return session


async def test_reads_the_catalog_that_was_applied(store: AsyncSessionStore, staging: AsyncEnvironment) -> None:
    # Given a project without a catalog
    project = store.project("checkout")
    assert await staging.catalog() is None
    assert await project.environments() == ()

    # When a document is applied
    report = await project.apply_catalog(document(staging=STAGING, qa={}))

    # Then both environments are registered, and each offers its mocks
    assert await project.environments() == ("qa", "staging")
    assert await staging.catalog() == CATALOG
    assert await store.environment("checkout", "qa").catalog() == Catalog()
    assert (await project.catalog()).environments == {"qa": Catalog(), "staging": CATALOG}
    assert [(entry.environment, entry.change, entry.sessions) for entry in report.environments] == [
        ("staging", "created", 0),
        ("qa", "created", 0),
    ]
    assert report.environments[0].diff == CatalogDiff(
        mocks_added=("ovr_a", "ovr_b"), scenarios_added=("scn_x", "scn_y")
    )
    assert report.changed
    # Then any other environment of the project is unknown
    with pytest.raises(EnvironmentNotFoundError, match="no environment 'prod'"):
        await store.environment("checkout", "prod").catalog()


async def test_counts_live_sessions_and_views_of_registered_environments(store: AsyncSessionStore) -> None:
    # Given sessions on an environment that is registered later
    project = store.project("checkout")
    staging = store.environment("checkout", "staging")
    for key in ("ci-1", "ci-2"):
        await staging.put(key)
    assert await project.live_counts() == {}
    await project.apply_catalog(document(staging=STAGING, qa={}))
    assert await project.live_counts() == {"qa": LiveCounts(0, 0), "staging": LiveCounts(2, 0)}

    # When a session is deleted and a view opens, then the counts follow
    await staging.delete("ci-1")
    async with staging.view():
        assert await project.live_counts() == {"qa": LiveCounts(0, 0), "staging": LiveCounts(1, 1)}


async def test_lists_live_views_and_where_else_the_project_has_some(backend: Backend) -> None:
    # Given a project without registered environments, and a lease that a busy machine keeps
    async with backend.store(lease_s=1.0) as store:
        project = store.project("checkout")
        assert await project.live_views("staging") == LiveViews(0, (), {})

        # When it registers three, and two have views
        await project.apply_catalog(document(staging=STAGING, qa={}, uat={}))
        staging = store.environment("checkout", "staging")
        async with staging.view(), store.environment("checkout", "qa").view():
            await staging.put("ci-1")

            # Then each environment shows its own, and the numbers of the others
            live = await project.live_views("staging")
            assert [view.applied_revision for view in live.views] == [live.revision]
            assert live.views[0].id == (await staging.views())[0].id
            assert live.elsewhere == {"qa": 1}
            assert (await project.live_views("uat")).elsewhere == {"qa": 1, "staging": 1}
            with pytest.raises(EnvironmentNotFoundError, match="qa, staging, uat"):
                await project.live_views("prod")


async def test_applying_again_changes_nothing(store: AsyncSessionStore, staging: AsyncEnvironment) -> None:
    project = store.project("checkout")
    await project.apply_catalog(document(staging=STAGING))
    session = await staging.put("ci-42", overrides=["ovr_a"])

    # When the same document is applied again, in another order and parsed
    again = copy.deepcopy(STAGING)
    again["mocks"].reverse()
    again["scenarios"].reverse()
    report = await project.apply_catalog(parse_catalog_document(json.dumps(document(staging=again)), "json"))

    # Then nothing changes, and the revision stays
    assert not report.changed
    assert report.environments[0].change == "unchanged"
    assert not report.environments[0].diff
    assert (await staging.put("ci-42", label="next")).revision == session.revision + 1


async def test_a_document_with_an_error_changes_nothing(store: AsyncSessionStore, staging: AsyncEnvironment) -> None:
    project = store.project("checkout")
    broken = copy.deepcopy(STAGING)
    broken["scenarios"][0]["mocks"].append("ovr_missing")
    with pytest.raises(InvalidCatalogError, match=r"environments\.staging\.scenarios\[0\]\.mocks\[2\]"):
        await project.apply_catalog(document(qa={}, staging=broken))
    with pytest.raises(InvalidCatalogError, match=r"^project: "):
        await store.project("other").apply_catalog(document(staging=STAGING))
    assert await project.environments() == ()
    assert await staging.catalog() is None


async def test_ids_are_checked_against_the_catalog(store: AsyncSessionStore, staging: AsyncEnvironment) -> None:
    # Given a session with something set on a catalog
    await store.project("checkout").apply_catalog(document(staging=STAGING))
    await staging.put("ci-42", scenario="scn_y", overrides=["ovr_b"])

    # When a write names an unknown id, then the error names the id, and nothing changes
    before = await state(staging, "ci-42")
    with pytest.raises(InvalidOverrideError, match="ovr_gone"):
        await staging.put("ci-42", label="no", overrides=["ovr_a", "ovr_gone"])
    with pytest.raises(InvalidOverrideError, match="ovr_own"):
        await staging.put("ci-42", label="no", overrides=["ovr_own"])
    with pytest.raises(InvalidScenarioError, match="scn_gone"):
        await staging.put("ci-42", label="no", scenario="scn_gone")
    with pytest.raises(OverrideNotFoundError, match="ovr_gone"):
        await staging.activate("ci-42", "ovr_gone")
    with pytest.raises(InvalidOverrideError, match="ovr_own"):
        await staging.activate("ci-42", "ovr_own")
    assert await state(staging, "ci-42") == before


async def test_suggests_the_id_that_was_meant(store: AsyncSessionStore, staging: AsyncEnvironment) -> None:
    await store.project("checkout").apply_catalog(document(staging=STAGING))
    cases: list[tuple[Awaitable[object], type[SessionStoreError], str]] = [
        (staging.put("ci-42", scenario="scn_X"), InvalidScenarioError, "There is no scenario 'scn_X'.*'scn_x'"),
        (staging.put("ci-42", scenario="SCN_x"), InvalidScenarioError, "is not a scenario id.*'scn_x'"),
        (staging.put("ci-42", scenario="X"), InvalidScenarioError, "is not a scenario id.*'scn_x'"),
        (staging.put("ci-42", SessionPatch(scenario="x")), InvalidScenarioError, "is not a scenario id.*'scn_x'"),
        (
            staging.put("ci-42", overrides=["ovr_a", "ovr_B"]),
            InvalidOverrideError,
            "no published mock 'ovr_B'.*'ovr_b'",
        ),
        (staging.activate("ci-42", "ovr_A"), OverrideNotFoundError, "no published mock 'ovr_A'.*'ovr_a'"),
    ]
    for call, error, sentence in cases:
        meant, near = sentence.rsplit(".*", 1)
        with pytest.raises(error, match=rf"{meant}.* Did you mean {near}\?$"):
            await call
    # An id that resembles none gets no suggestion, and neither does one that only a scenario may use
    for scenario in ("scn_other", "ovr_own"):
        with pytest.raises(InvalidScenarioError) as caught:
            await staging.put("ci-42", scenario=scenario)
        assert "Did you mean" not in str(caught.value)
    assert await staging.get("ci-42") is None


async def test_a_malformed_id_is_reported_without_redis(store: AsyncSessionStore) -> None:
    staging = store.environment("checkout", "staging")
    await store.aclose()
    with pytest.raises(InvalidScenarioError, match=r"is not a scenario id: use .*\.$"):
        await staging.put("ci-42", scenario="payment-declined")


async def test_a_removed_mock_is_deactivated_in_every_session(
    backend: Backend, store: AsyncSessionStore, staging: AsyncEnvironment
) -> None:
    # Given sessions on a catalog, and a subscriber
    project = store.project("checkout")
    await project.apply_catalog(document(staging=STAGING))
    await staging.put("both", overrides=["ovr_a", "ovr_b"], label="kept", global_delay_ms=5)
    await staging.put("only", overrides=["ovr_b"])
    untouched = await staging.put("neither", scenario="scn_x", overrides=["ovr_a"])
    with backend.raw.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.ssubscribe(f"{backend.prefix}:{{checkout}}:staging:changes")
        pubsub.get_sharded_message(timeout=10)

        # When a mock is removed
        report = await project.apply_catalog(document(staging=without_b()))

        # Then it is off in every session, and nothing else changes
        assert report.sessions == report.environments[0].sessions == 2
        assert report.environments[0].change == "changed"
        assert report.environments[0].diff == CatalogDiff(mocks_removed=("ovr_b",))
        both = await state(staging, "both")
        assert (both.overrides, both.label, both.global_delay_ms) == (("ovr_a",), "kept", 5)
        assert (await state(staging, "only")).overrides == ()
        assert (await state(staging, "neither")).revision == untouched.revision
        # Then each session and the catalog are published as one chain
        changes: list[Any] = []
        while len(changes) < 3:
            message = pubsub.get_sharded_message(timeout=10)
            assert message is not None, "three changes were published"
            if message["type"] == "smessage":
                changes.append(decode_change(message["data"]))
    assert {change.session.session_key for change in changes[:2] if isinstance(change, SessionSet)} == {"both", "only"}
    last = changes[2]
    assert isinstance(last, CatalogChanged)
    assert last.catalog == await staging.catalog()
    first_rev = untouched.revision + 1
    assert [change.rev for change in changes] == [first_rev, first_rev + 1, first_rev + 2]
    assert [change.prev for change in changes[1:]] == [change.id for change in changes[:2]]
    effect = report.environments[0].effect
    assert effect is not None
    assert effect.revision == last.rev


async def test_the_first_catalog_deactivates_unknown_ids_in_older_sessions(
    store: AsyncSessionStore, staging: AsyncEnvironment
) -> None:
    await staging.put("ci-42", scenario="scn_any", overrides=["ovr_any", "ovr_a"])
    report = await store.project("checkout").apply_catalog(document(staging=STAGING))
    session = await state(staging, "ci-42")
    assert (session.scenario, session.overrides, report.sessions) == (None, ("ovr_a",), 1)


async def test_an_apply_covers_more_sessions_than_one_answer_names(backend: Backend) -> None:
    scripts: list[str] = []
    async with backend.store(lease_s=0.1, observe=lambda script, _seconds, _error: scripts.append(script)) as store:
        # Given an index longer than what the script names in one answer
        project, staging = store.project("checkout"), store.environment("checkout", "staging")
        await project.apply_catalog(document(staging=STAGING))
        first = await staging.put("first", overrides=["ovr_b"])
        index = f"{backend.prefix}:{{checkout}}:staging:index"
        backend.raw.zadd(index, {f"gone-{n}": first.last_seen_at for n in range(3000)})
        await staging.put("last", overrides=["ovr_b"])

        # When a mock is removed, then it is off in every session, and the index is read once
        scripts.clear()
        assert (await project.apply_catalog(document(staging=without_b()))).sessions == 2
        assert (await state(staging, "first")).overrides == (await state(staging, "last")).overrides == ()
        assert [script for script in scripts if script != "scan"][:3] == [
            "environments",
            "catalog_apply",
            "catalog_apply",
        ]
        assert scripts.count("catalog_apply") == 2


async def test_environments_that_the_document_lacks_are_left_alone_or_pruned(
    store: AsyncSessionStore, staging: AsyncEnvironment
) -> None:
    # Given two environments, and a session
    project = store.project("checkout")
    qa = store.environment("checkout", "qa")
    await project.apply_catalog(document(staging=STAGING, qa=STAGING))
    await qa.put("ci-42", scenario="scn_x", overrides=["ovr_a"])

    # When a document has one of them, then the report names the other, which stays
    report = await project.apply_catalog(document(staging=STAGING))
    assert (report.left_alone, report.changed) == (("qa",), False)
    assert await qa.catalog() == CATALOG

    # When an apply prunes, then the other environment and its session's mocks are removed
    report = await project.apply_catalog(document(staging=STAGING), prune=True)
    assert [(entry.environment, entry.change, entry.sessions) for entry in report.environments] == [
        ("staging", "unchanged", 0),
        ("qa", "removed", 1),
    ]
    assert report.left_alone == ()
    assert await project.environments() == ("staging",)
    with pytest.raises(EnvironmentNotFoundError):
        await qa.get("ci-42")
    # When the last environment is removed too, then the project takes any environment again
    await project.apply_catalog(document(), prune=True)
    assert await staging.catalog() is None
    session = await qa.get("ci-42")
    assert session is not None
    assert (session.scenario, session.overrides) == (None, ())


async def test_a_diff_shows_the_changes_and_makes_none(store: AsyncSessionStore, staging: AsyncEnvironment) -> None:
    project = store.project("checkout")
    await project.apply_catalog(document(staging=STAGING, old={}))
    for prune in (False, True):
        planned = await project.diff_catalog(document(staging=without_b(), new={}), prune=prune)
        assert await staging.catalog() == CATALOG
        assert await project.environments() == ("old", "staging")
        changes = {entry.environment: entry.change for entry in planned.environments}
        assert changes == {"staging": "changed", "new": "created"} | ({"old": "removed"} if prune else {})
        assert planned.left_alone == (() if prune else ("old",))
    done = await project.apply_catalog(document(staging=without_b(), new={}), prune=True)
    assert [(entry.environment, entry.change, entry.diff) for entry in planned.environments] == [
        (entry.environment, entry.change, entry.diff) for entry in done.environments
    ]


async def test_a_diff_counts_the_sessions_that_would_lose_something(
    store: AsyncSessionStore, staging: AsyncEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given sessions with ids that no catalog has, and pages of few sessions
    monkeypatch.setattr("sessionstore.protocol.calls.READ_BATCH", 2)
    project = store.project("checkout")
    for number in range(5):
        await staging.put(f"kept-{number}", overrides=["ovr_a"], scenario="scn_x")
        await staging.put(f"lost-{number}", overrides=["ovr_a", "ovr_unknown"])
    await staging.put("lost-scenario", scenario="scn_unknown")
    await staging.put("empty")

    # When a first catalog is planned and applied, then both count the same sessions
    for later in (document(staging=STAGING), document(staging={"mocks": STAGING["mocks"]}), document()):
        planned = await project.diff_catalog(later, prune=True)
        done = await project.apply_catalog(later, prune=True)
        assert [entry.sessions for entry in planned.environments] == [entry.sessions for entry in done.environments]
        assert planned.sessions > 0
    assert (await project.diff_catalog(document(staging=STAGING))).sessions == 0


async def test_scenarios_come_in_pages(store: AsyncSessionStore, staging: AsyncEnvironment) -> None:
    assert (await staging.scenarios()).scenarios == ()
    await store.project("checkout").apply_catalog(document(staging=STAGING))
    first = await staging.scenarios(limit=1)
    assert [scenario.id for scenario in first.scenarios] == ["scn_x"]
    second = await staging.scenarios(limit=1, before=first.next_before)
    assert ([scenario.id for scenario in second.scenarios], second.next_before) == (["scn_y"], None)
    assert [scenario.id for scenario in (await staging.scenarios(search="y")).scenarios] == ["scn_y"]
    with pytest.raises(InvalidQueryError):
        await staging.scenarios(limit=0)
    with pytest.raises(EnvironmentNotFoundError):
        await store.environment("checkout", "qa").scenarios()


async def test_round_trips(backend: Backend) -> None:
    scripts: list[str] = []
    async with backend.store(lease_s=0.1, observe=lambda script, _seconds, _error: scripts.append(script)) as store:
        project, staging = store.project("checkout"), store.environment("checkout", "staging")
        await project.apply_catalog(document(staging=STAGING))
        await staging.put("ci-42", overrides=["ovr_b"])
        scripts.clear()
        await project.apply_catalog(document(staging=STAGING))
        assert scripts == ["environments", "catalog_apply"]
        scripts.clear()
        await project.apply_catalog(document(staging=without_b()))
        assert scripts == ["environments", "catalog_apply", "catalog_apply"]
        scripts.clear()
        await staging.catalog()
        await staging.scenarios()
        assert scripts == ["catalog_read", "catalog_read"]


async def test_an_apply_that_fails_midway_names_the_environments_that_it_changed(
    backend: Backend, store: AsyncSessionStore
) -> None:
    if backend.kind != "redis":
        pytest.skip("fakeredis knows no users; elsewhere, each server needs them")
    # Given a user who may write one environment's catalog, and not the other's
    base = f"{backend.prefix}:{{checkout}}"
    raw = backend.raw
    raw.execute_command(
        "ACL", "SETUSER", backend.prefix, "reset", "on", ">secret", "+@all", f"~{base}:one*", f"&{base}:*"
    )
    shared = (f"~{base}:{name}" for name in ("environments", "usage", "ledger"))
    raw.execute_command("ACL", "SETUSER", backend.prefix, *shared)
    async with backend.on_client(backend.client(username=backend.prefix, password="secret"), lease_s=0.1) as limited:
        with pytest.raises(OutcomeUnknownError, match=r"environment 'two'; applied before it: one") as caught:
            await limited.project("checkout").apply_catalog(document(one=STAGING, two=STAGING, three=STAGING))
    assert "secret" not in str(caught.value)
    assert await store.project("checkout").environments() == ("one",)
