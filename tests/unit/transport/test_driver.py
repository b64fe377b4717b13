"""The routes of a store on a cluster: one for each hash tag in use."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest

from sessionstore.options import StoreConfig
from sessionstore.protocol import calls
from sessionstore.protocol.keyspace import EnvironmentKeyspace, ProjectKeyspace
from sessionstore.protocol.operations import AwaitApplied
from sessionstore.protocol.server_identity import ServerIdentity
from sessionstore.transport import driver
from sessionstore.transport.driver import IDLE_ROUTE_S, BaseRoute, Routes


class FakeDriver:
    def __init__(self) -> None:
        self.subscriptions = self
        self.followed = False


class World:
    """Routes that do nothing, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.made: list[str] = []
        self.closed: list[BaseRoute] = []
        self.servers: dict[str, ServerIdentity] = {}
        self.home = BaseRoute(None, FakeDriver())
        self.routes: Routes[Any] = Routes(self.home, self.make, self.closed.append, StoreConfig())

    def make(self, tag: str, server: ServerIdentity) -> BaseRoute:
        self.made.append(tag)
        self.servers[tag] = server
        return BaseRoute(None, FakeDriver())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_steps_of_one_project_share_a_route(world: World) -> None:
    staging = EnvironmentKeyspace("ss", "checkout", "staging")
    production = EnvironmentKeyspace("ss", "checkout", "production")

    route = world.routes.of(calls.get(staging, "ci-42"))

    assert world.routes.of(calls.read_catalog(production)) is route
    assert world.routes.of(calls.environments(ProjectKeyspace("ss", "checkout"))) is route
    assert world.routes.of(AwaitApplied(staging, 1, 0.1)) is route
    assert world.routes.of_tag("checkout") is route
    assert world.made == ["checkout"]
    assert list(world.routes) == [route]


def test_a_call_without_a_key_goes_home(world: World) -> None:
    assert world.routes.of(calls.ping()) is world.home
    assert world.made == []


def test_an_unused_route_is_closed_at_a_later_call_of_another(world: World) -> None:
    unused, used = world.routes.of_tag("unused"), world.routes.of_tag("used")
    viewed = world.routes.of_tag("viewed")
    viewed.driver.followed = True
    world.now += IDLE_ROUTE_S - 1
    assert world.routes.of_tag("used") is used
    assert world.closed == []

    world.now += 20
    assert world.routes.of_tag("used") is used

    assert world.closed == [unused]
    assert world.routes.of_tag("viewed") is viewed
    # What comes back is another one
    assert world.routes.of_tag("unused") is not unused


def test_one_who_comes_back_after_long_keeps_its_route(world: World) -> None:
    route = world.routes.of_tag("checkout")
    world.now += 10 * IDLE_ROUTE_S

    assert world.routes.of_tag("checkout") is route
    assert world.closed == []


def test_of_too_many_routes_the_longest_unused_one_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MAX_ROUTES", 2)
    first = world.routes.of_tag("a")
    world.now += 5
    second = world.routes.of_tag("b")
    # Neither may be closed while a call may be under way
    world.routes.of_tag("a")
    world.routes.of_tag("c")
    assert world.closed == []

    world.now += 5
    world.routes.of_tag("a")
    world.routes.of_tag("d")
    assert set(world.closed) == {second, *world.closed}
    assert first not in world.closed
    assert len(list(world.routes)) == 2


def test_what_is_known_of_a_server_outlives_its_route(world: World) -> None:
    # Given an environment that somebody holds
    server = world.routes.server_of("checkout")
    world.routes.of_tag("checkout")
    assert world.servers.pop("checkout") is server

    world.now += 10 * IDLE_ROUTE_S
    world.routes.of_tag("other")
    world.routes.of_tag("checkout")

    assert world.servers["checkout"] is server
    assert world.routes.server_of("third") is not server


def test_what_nobody_uses_is_forgotten(world: World) -> None:
    for number in range(100):
        world.routes.server_of(f"p{number}")
    gc.collect()

    assert len(world.routes._servers) == 0


def test_a_forked_process_does_not_wait_for_a_thread_of_its_parent(world: World) -> None:
    world.routes._lock.acquire()

    driver._after_fork()

    world.routes.of_tag("checkout")
