# Generated from aio/runner.py by .ci/unasync.py: change that file instead.
"""Runs the steps of a store's operations on its connections and subscriptions."""

from __future__ import annotations

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
    """Everything of one store that does I/O. Any thread may use it."""

    def __init__(self, pool: Any, config: StoreConfig) -> None:
        config.database = database_of(pool)
        config.clock = time.monotonic
        self.config = config
        self.connections = Connections(pool, config)
        self.driver = SubscriptionsDriver(self.connections, config)
        self._closed = False

    def run(self, operation: Operation[T]) -> T:
        """Run an operation's steps; returns its result."""
        try:
            step = next(operation)
            while True:
                try:
                    if self._closed:
                        # Check between the steps too: a closed pool would connect again.
                        raise StoreClosedError(CLOSED)
                    if isinstance(step, AwaitApplied):
                        result: Any = self.driver.await_applied(step)
                    elif isinstance(step, Pause):
                        time.sleep(step.seconds)
                        result = None
                    elif isinstance(step, DurableCall):
                        result = self.connections.execute_durable(step)
                    else:
                        result = self.connections.execute(step)
                except SessionStoreError as exc:
                    step = operation.throw(closed_error(exc) if self._closed else exc)
                else:
                    step = operation.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def close(self) -> None:
        """Drain the views and close all connections. Closing twice is fine."""
        self._closed = True
        self.driver.close()
