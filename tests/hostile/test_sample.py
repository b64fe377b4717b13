"""A sample of the hostile inputs on both stores; ``make hostile`` sends all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from ..conftest import require_redis_server
from . import catalogs
from .attacks import ATTACKS, Attack
from .world import World, embedded_world, redis_world

#: Fixed, so that a failure can be repeated.
SEED = 1
#: Seconds. Longer than for all inputs, because other tests run at the same time.
LEASE_S = 1.0


_WORLDS = {"redis": redis_world, "embedded": embedded_world}


@pytest.fixture(scope="module", params=_WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "redis":
        require_redis_server()
    with _WORLDS[request.param](LEASE_S) as world:
        yield world


@pytest.mark.timeout(180)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_hostile_input_does_no_harm(world: World, attack: Attack) -> None:
    source = random.Random(SEED)
    inputs = source.sample(attack.generate(source), attack.sample)
    assert await attack.run(world, inputs) == []


async def test_catalogs_are_read_within_bounds() -> None:
    source = random.Random(SEED)
    assert await catalogs.attack(source.sample(catalogs.documents(source), 30)) == []
