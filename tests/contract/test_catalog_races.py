"""An apply that removes a mock or scenario races with writes. Afterwards, no session holds what it removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sessionstore import (
    AsyncEnvironment,
    AsyncSessionStore,
    InvalidOverrideError,
    InvalidScenarioError,
    OverrideNotFoundError,
)
from sessionstore.protocol import calls
from sessionstore.protocol.scripts import Script, compose, load_script

from ..support.redis_server import RedisServer

#: Races, and sessions that write in each.
ROUNDS = 40
WRITERS = 12
#: The most writes of one session in one race, so that a race ends even if no write is refused.
MOST_WRITES = 200

REFUSED = (InvalidOverrideError, InvalidScenarioError, OverrideNotFoundError)

Write = Callable[[AsyncEnvironment, str], Awaitable[object]]

MOCKS = [{"id": "ovr_stays", "name": "Stays"}, {"id": "ovr_goes", "name": "Goes"}]
SCENARIOS = [{"id": "scn_goes", "name": "Goes", "urlId": "goes", "mocks": ["ovr_goes"]}]


def document(mocks: list[Any], scenarios: list[Any]) -> dict[str, Any]:
    return {"project": "checkout", "environments": {"staging": {"mocks": mocks, "scenarios": scenarios}}}


PUBLISHED = document(MOCKS, SCENARIOS)
UNPUBLISHED = document(MOCKS[:1], [])


async def put(staging: AsyncEnvironment, key: str) -> object:
    return await staging.put(key, scenario="scn_goes", overrides=["ovr_stays", "ovr_goes"])


async def activate(staging: AsyncEnvironment, key: str) -> object:
    return await staging.activate(key, "ovr_goes")


async def put_checked_by_the_client(staging: AsyncEnvironment, key: str) -> object:
    """The check outside the script: the client reads, then writes."""
    catalog = await staging.catalog()
    assert catalog is not None
    if "ovr_goes" not in catalog.mocks_by_id:
        raise InvalidOverrideError("There is no such mock.")
    return await put(staging, key)


def without_the_check(name: str) -> Script:
    script = load_script(name)
    if name != "put":
        return script
    checked = "environment_and_catalog(KEYS[7], ARGV[6], KEYS[12])"
    assert checked in script.text
    return compose(name, script.text.replace(checked, "true, false"))


async def race(url: str, prefix: str, write: Write) -> tuple[int, int]:
    """How many sessions held a removed mock after a race, and the number of writes in all races."""
    held = done = 0
    async with AsyncSessionStore.from_url(url, prefix=prefix, lease_s=0.1) as store:
        project, staging = store.project("checkout"), store.environment("checkout", "staging")

        async def write_until_it_is_refused(key: str) -> None:
            nonlocal done
            for _ in range(MOST_WRITES):
                try:
                    await write(staging, key)
                except REFUSED:
                    return
                done += 1

        for number in range(ROUNDS):
            await project.apply_catalog(PUBLISHED)
            # Each race starts the apply at another point among the writers.
            calls: list[Any] = [write_until_it_is_refused(f"s{n}") for n in range(WRITERS)]
            calls.insert(number % (WRITERS + 1), project.apply_catalog(UNPUBLISHED))
            await asyncio.gather(*calls)
            sessions = (await staging.list(limit=100)).sessions
            held += sum("ovr_goes" in s.overrides or s.scenario == "scn_goes" for s in sessions)
            for session in sessions:
                await staging.delete(session.session_key)
    return held, done


@pytest.mark.parametrize("write", [put, activate])
async def test_no_session_holds_a_removed_mock(shared_redis: RedisServer, prefix: str, write: Write) -> None:
    held, done = await race(shared_redis.url, prefix, write)
    assert held == 0
    # It was a race: every writer was refused in the end, and many writes came before.
    assert done > ROUNDS


async def test_finds_a_check_outside_of_the_script(
    shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "load_script", without_the_check)
    held, _ = await race(shared_redis.url, prefix, put_checked_by_the_client)
    assert held > 0
