"""Writes with `replicas=N` on a server without replicas. With some: tests/faults/test_durable.py."""

from __future__ import annotations

from typing import Any

import pytest

from sessionstore import AsyncEnvironment, AsyncSessionStore, InvalidQueryError, NotDurableError

from ..support.adapter import Backend
from ..support.replication import short_waits

CATALOG: dict[str, Any] = {"project": "checkout", "environments": {"staging": {"mocks": [], "scenarios": []}}}


@pytest.fixture(autouse=True)
def no_replicas(backend: Backend) -> None:
    if backend.kind in ("cluster", "sentinels"):
        pytest.skip("it has replicas")


async def test_the_write_is_committed(backend: Backend, staging: AsyncEnvironment) -> None:
    with short_waits(), pytest.raises(NotDurableError, match="replicas=1 was asked for, and 0 had it") as caught:
        await staging.put("ci-1", label="x", replicas=1)

    session = await staging.get("ci-1")
    assert session is not None
    assert (caught.value.revision, caught.value.replicas) == (session.revision, 0)
    assert ("has no replicas" in str(caught.value)) is not backend.real


async def test_none_are_asked_for_by_default(staging: AsyncEnvironment) -> None:
    session = await staging.put("ci-1")
    assert session.effect is not None
    assert (session.effect.replicas, session.effect.durable_s) == (0, 0.0)


async def test_the_stores_number_holds_unless_a_write_has_its_own(backend: Backend) -> None:
    async with backend.store(lease_s=0.1, replicas=1) as store:
        staging = store.environment("checkout", "staging")
        with short_waits(), pytest.raises(NotDurableError):
            await staging.put("ci-1", label="x")
        with short_waits(), pytest.raises(NotDurableError):
            await store.project("checkout").apply_catalog(CATALOG)

        await staging.put("ci-1", label="y", replicas=0)
        await store.project("checkout").apply_catalog(CATALOG, replicas=0)


@pytest.mark.parametrize("replicas", [-1, 11, 1.0, True, "1"])
async def test_a_wrong_number_changes_nothing(store: AsyncSessionStore, replicas: Any) -> None:
    staging = store.environment("checkout", "staging")
    for write in (
        lambda: staging.put("ci-1", replicas=replicas),
        lambda: staging.activate("ci-1", "ovr_a", replicas=replicas),
        lambda: staging.deactivate("ci-1", "ovr_a", replicas=replicas),
        lambda: staging.reset("ci-1", replicas=replicas),
        lambda: staging.delete("ci-1", replicas=replicas),
        lambda: staging.delete_prefix("ci-", replicas=replicas),
        lambda: staging.reset_prefix("ci-", replicas=replicas),
        lambda: store.project("checkout").apply_catalog(CATALOG, replicas=replicas),
    ):
        with pytest.raises(InvalidQueryError, match="replicas must be a whole number from 0 to 10"):
            await write()
    assert await staging.get("ci-1") is None


async def test_a_rejected_write_does_not_wait(staging: AsyncEnvironment) -> None:
    """Given a write that a precondition rules out, when it asks for replicas, then its error is about the precondition.

    The connection is in order: the next write uses it.
    """
    for _ in range(3):
        with pytest.raises(Exception, match="precondition rules out"):
            await staging.put("ci-1", if_match="*", replicas=1)
    with short_waits(), pytest.raises(NotDurableError):
        await staging.put("ci-1", replicas=1)
