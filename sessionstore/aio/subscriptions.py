"""The asyncio driver of a store's subscriptions: one task keeps the pub/sub connection, another runs the calls."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..clock import lease_clock
from ..errors import StoreClosedError
from ..options import CLOSED, StoreConfig
from ..protocol.messages import Applied
from ..protocol.operations import AwaitApplied
from ..replica.follower import Backoff, Follower, FollowerRequest
from ..replica.subscriptions import CALL_WITHIN_S, ConnectionBroken, Subscriptions, log
from ..transport.driver import deliver
from ..transport.errors import FOREIGN_ERRORS, describe_loss
from ..transport.topology import without_address
from .connections import Connections, Sent
from .link import disconnect
from .receiving import receive

#: Batches that are begun before the first is answered.
_BEGUN = 2


class SubscriptionsDriver:
    """Runs from the first view or waiting writer on. It belongs to the event loop that it was first used on."""

    def __init__(self, connections: Connections, config: StoreConfig) -> None:
        self.subscriptions = Subscriptions(moves=connections.link.moves)
        #: the driver for threads has a lock here; one event loop needs none
        self.lock = contextlib.nullcontext()
        self._deadline_s = min(config.deadline_s, CALL_WITHIN_S)
        self._link = connections.link
        #: of the store's own calls, and of the views' calls
        self._store_connections = connections
        self._connections = connections.with_deadline(self._deadline_s)
        self._wake_work = asyncio.Event()
        self._wake_pubsub = asyncio.Event()
        #: batches of calls that were begun and not answered yet, while a snapshot is read
        self._begun: deque[tuple[list[FollowerRequest], Sent]] = deque()
        #: set when anything arrives
        self._progress = asyncio.Event()
        #: until when the task that runs the calls sleeps, and how many tasks wait for `_progress`
        self._asleep_until = -math.inf
        self._waiting = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._close_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the tasks, once.

        Raises
        ------
        StoreClosedError
            The store is closed, or belongs to another event loop.
        """
        self.check_loop()
        if self._closing:
            raise StoreClosedError(CLOSED)
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._keep_subscribed(), name="sessionstore-pubsub"),
                loop.create_task(self._work(), name="sessionstore-calls"),
            ]

    def check_loop(self) -> None:
        """Check that this is the event loop that the store was first used on.

        Raises
        ------
        StoreClosedError
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise StoreClosedError("This store belongs to another event loop; open one on each.")
            self._loop = loop

    def wake(self) -> None:
        """Wake the tasks: there may be something to do."""
        self._wake_work.set()
        self._wake_pubsub.set()

    async def aclose(self) -> None:
        """Drain the views, once, and close the connections."""
        if self._loop not in (None, asyncio.get_running_loop()):
            return  # the tasks and connections ended with their event loop
        self.close_soon()
        assert self._close_task is not None
        # If the caller is cancelled, closing goes on.
        await asyncio.shield(self._close_task)

    def close_soon(self) -> None:
        """Begin to close, once."""
        if self._close_task is None:
            self._close_task = asyncio.get_running_loop().create_task(self._close(), name="sessionstore-close")

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, and nothing of it is left."""
        return self._close_task is not None and self._close_task.done()

    async def _close(self) -> None:
        await self._drain()
        await self._close_connections()

    async def _drain(self) -> None:
        self._closing = True
        self.subscriptions.close(lease_clock())
        self._progress.set()
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        connection, work = tasks
        connection.cancel()
        self.wake()
        try:
            # Calls in flight, and the last ones.
            await asyncio.wait([work], timeout=3 * self._deadline_s)
        finally:
            work.cancel()
            await asyncio.gather(connection, work, return_exceptions=True)

    async def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until the condition is true; False if it is not in time. It is checked when anything arrives."""
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return condition()
        finally:
            self._waiting -= 1
        return True

    async def await_drained(self, follower: Follower) -> None:
        """Wait until the last calls of an environment have run, if its last view was closed."""
        if self._loop is asyncio.get_running_loop():
            self.wake()
            await self.wait_for(
                lambda: follower.drained or not follower.closed or not self._tasks, 3 * self._deadline_s
            )

    async def await_applied(self, step: AwaitApplied) -> Applied | None:
        """Wait for a message that every view has applied a revision; None if none arrives in time."""
        self.start()
        future: asyncio.Future[Applied | None] = asyncio.get_running_loop().create_future()

        def wake(applied: Applied | None) -> None:
            if not future.done():
                future.set_result(applied)

        waiter = self.subscriptions.expect(step, wake, lease_clock())
        if not self.subscriptions.is_subscribed(step.keyspace.applied):
            self._wake_pubsub.set()
        try:
            async with asyncio.timeout(step.timeout_s):
                return await future
        except TimeoutError:
            return None
        finally:
            self.subscriptions.forget(step, waiter)

    async def _keep_subscribed(self) -> None:
        """Keep a pub/sub connection open while anything is subscribed."""
        backoff = Backoff()
        while not self._closing:
            self._wake_pubsub.clear()
            if not self.subscriptions.wanted:
                await self._wake_pubsub.wait()
                continue
            connection: Any = None
            try:
                async with asyncio.timeout(self._deadline_s):
                    connection = await self._link.open(self._deadline_s, for_calls=False)
                self.subscriptions.connected(lease_clock())
                await self._use(connection, backoff)
            except (ConnectionBroken, *FOREIGN_ERRORS) as exc:
                self._link.doubt(exc)
                self._lose_connection(describe_loss(without_address(exc) if self._link.moves else exc))
            except Exception:
                log.exception("The subscription failed unexpectedly; subscribing again.")
                self._lose_connection("an unexpected error, see the log")
            finally:
                await disconnect(connection)
            await asyncio.sleep(backoff.failed())

    async def _use(self, connection: Any, backoff: Backoff) -> None:
        """Read and write until one of them fails."""

        def received(replies: list[Any]) -> None:
            self._received(replies)
            backoff.succeeded()

        tasks = [
            receive(connection, received),
            asyncio.create_task(self._write(connection), name="sessionstore-pubsub-writer"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _received(self, replies: list[Any]) -> None:
        now = lease_clock()
        for reply in replies:
            self.subscriptions.received(reply, now)
        if self.subscriptions.commands_due_at() <= now:
            self._wake_pubsub.set()
        # Waking a task without need would cost more than applying a change.
        if self._waiting or self.subscriptions.wake_at(now) < self._asleep_until:
            self._wake_work.set()

    async def _write(self, connection: Any) -> None:
        """Send subscriptions and heartbeats."""
        while True:
            self._wake_pubsub.clear()
            for command in self.subscriptions.commands_due(lease_clock()):
                await connection.send_command(*command, check_health=False)
            await _wait(self._wake_pubsub, self.subscriptions.commands_due_at() - lease_clock())

    def _lose_connection(self, reason: str) -> None:
        self.subscriptions.disconnected(reason, lease_clock())
        self._wake_work.set()
        self._progress.set()

    async def _work(self) -> None:
        """Run the calls that are due, all together, until the store is closed; then those that are left."""
        backoff = Backoff()
        try:
            while not self._closing or self.subscriptions.draining or self._begun:
                try:
                    await self._run_due()
                    backoff.succeeded()
                except Exception:
                    log.exception("A view's calls failed unexpectedly; all views of this store resync.")
                    self.subscriptions.crashed(lease_clock())
                    await asyncio.sleep(backoff.failed())
        except asyncio.CancelledError:
            if not self._closing:
                await self._end_with_loop()
            raise
        finally:
            self._abandon()

    async def _run_due(self) -> None:
        self._wake_work.clear()
        now = lease_clock()
        requests = self.subscriptions.poll(now) if len(self._begun) < _BEGUN else []
        self._progress.set()
        if requests and self.subscriptions.syncing:
            # Redis reads the next page while this one is applied.
            self._begun.append((requests, self._connections.begin([request.call for request in requests])))
            await asyncio.sleep(0)  # so it leaves now, and not after an answer that is here already was applied
            return
        if not requests and self._begun:
            requests, sent = self._begun.popleft()
            results = await self._connections.finish(sent)
        elif requests:
            results = await self._connections.execute_all([request.call for request in requests])
        else:
            if not self._closing:
                self._asleep_until = self.subscriptions.wake_at(now)
                try:
                    await _wait(self._wake_work, self._asleep_until - now)
                finally:
                    self._asleep_until = -math.inf
            return
        deliver(self.subscriptions, requests, results, lease_clock())
        self._progress.set()

    def _abandon(self) -> None:
        """Drop the calls that were begun."""
        for _, sent in self._begun:
            sent.abandon()
        self._begun.clear()

    async def _end_with_loop(self) -> None:
        """Leave before the event loop ends: ``asyncio.run`` cancels the remaining tasks."""
        self._closing = True
        self._tasks = []
        self._abandon()
        self.subscriptions.close(lease_clock())
        while self.subscriptions.draining:
            await self._run_due()
        await self._close_connections()

    async def _close_connections(self) -> None:
        await self._connections.aclose()
        await self._store_connections.aclose()
        await self._link.pool.aclose()


async def close_all(drivers: Sequence[SubscriptionsDriver]) -> None:
    """Close the drivers of one store together."""
    await asyncio.gather(*(driver.aclose() for driver in drivers))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if timeout_s == math.inf else max(0.0, timeout_s)):
            await event.wait()
