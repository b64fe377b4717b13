"""Runs the steps of a store's operations on its connections and subscriptions."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

from ..errors import SessionStoreError, StoreClosedError
from ..options import CLOSED, StoreConfig
from ..protocol.calls import DurableCall
from ..protocol.keyspace import EnvironmentKeyspace
from ..protocol.operations import AwaitApplied, Operation, Pause
from ..protocol.server_identity import ServerIdentity
from ..transport.connect import database_of
from ..transport.driver import BaseRoute, Routes
from ..transport.errors import closed_error
from ..transport.locator import locator_for
from ..transport.topology import Cluster, Site
from .connections import Connections
from .link import Link
from .pool import pool_of_route
from .subscriptions import SubscriptionsDriver, close_all

T = TypeVar("T")


class Route(BaseRoute):
    """The connections and subscriptions of one hash tag, or of one Redis."""

    connections: Connections
    driver: SubscriptionsDriver


class Runner:
    """Everything of one store that does I/O. It belongs to the event loop that it is first used on."""

    def __init__(self, pool: Any, site: Site, config: StoreConfig) -> None:
        config.database = database_of(pool)
        config.clock = time.monotonic
        self.config = config
        self.pool = pool
        self.site = site
        self._locator = None if site is None else locator_for(site, pool, config.deadline_s)
        #: for all calls, or for those without a key if there are several routes
        self._route = self._make_route(pool, "", config.server)
        self.connections = self._route.connections
        self.driver = self._route.driver
        self._routes: Routes[Route] | None = None
        if isinstance(site, Cluster):
            self._routes = Routes(self._route, self._add_route, self._retire, config)
            config.server_of = self._routes.server_of
        #: drivers of idle routes that are being closed
        self._retired: list[SubscriptionsDriver] = []
        self._closed = False

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation's steps; returns its result."""
        self.driver.check_loop()
        try:
            step = next(operation)
            while True:
                try:
                    if self._closed:
                        # Check between the steps too: a closed pool would connect again.
                        raise StoreClosedError(CLOSED)
                    if isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                        result: Any = None
                    else:
                        route = self._route if self._routes is None else self._routes.of(step)
                        if isinstance(step, AwaitApplied):
                            result = await route.driver.await_applied(step)
                        elif isinstance(step, DurableCall):
                            result = await route.connections.execute_durable(step)
                        else:
                            result = await route.connections.execute(step)
                except SessionStoreError as exc:
                    step = operation.throw(closed_error(exc) if self._closed else exc)
                else:
                    step = operation.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def route_of(self, keyspace: EnvironmentKeyspace) -> Route:
        """The route of an environment. It stays open for a minute, and while it has a view."""
        self.driver.check_loop()
        if self._closed:
            raise StoreClosedError(CLOSED)
        return self._route if self._routes is None else self._routes.of_tag(keyspace.project)

    async def aclose(self) -> None:
        """Drain the views and close all connections. Closing twice is fine."""
        self._closed = True
        await close_all([self.driver, *(route.driver for route in self._routes or ()), *self._retired])
        if self._locator is not None:
            self._locator.close()

    def _add_route(self, tag: str, server: ServerIdentity) -> Route:
        return self._make_route(pool_of_route(self.pool), tag, server)

    def _retire(self, route: Route) -> None:
        self._retired = [driver for driver in self._retired if not driver.is_closed] + [route.driver]
        route.driver.close_soon()

    def _make_route(self, pool: Any, tag: str, server: ServerIdentity) -> Route:
        connections = Connections(Link(pool, server, self._locator, tag), self.config)
        return Route(connections, SubscriptionsDriver(connections, self.config))
