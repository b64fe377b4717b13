"""Runs the steps of a store's operations on its connections and subscriptions."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

from ..errors import SessionStoreError, StoreClosedError
from ..options import CLOSED, StoreConfig
from ..protocol.calls import DurableCall
from ..protocol.operations import AwaitApplied, Operation, Pause
from ..transport.connect import database_of
from ..transport.errors import closed_error
from .connections import Connections
from .subscriptions import SubscriptionsDriver

T = TypeVar("T")


class Runner:
    """Everything of one store that does I/O. It belongs to the event loop that it is first used on."""

    def __init__(self, pool: Any, config: StoreConfig) -> None:
        config.database = database_of(pool)
        config.clock = time.monotonic
        self.config = config
        self.connections = Connections(pool, config)
        self.driver = SubscriptionsDriver(self.connections, config)
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
                    if isinstance(step, AwaitApplied):
                        result: Any = await self.driver.await_applied(step)
                    elif isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                        result = None
                    elif isinstance(step, DurableCall):
                        result = await self.connections.execute_durable(step)
                    else:
                        result = await self.connections.execute(step)
                except SessionStoreError as exc:
                    step = operation.throw(closed_error(exc) if self._closed else exc)
                else:
                    step = operation.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def aclose(self) -> None:
        """Drain the views and close all connections. Closing twice is fine."""
        self._closed = True
        await self.driver.aclose()
