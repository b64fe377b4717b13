"""The asyncio driver of a store's hub: a task that keeps the link, and one that runs the calls."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Coroutine
from typing import Any

from ..clock import lease_clock
from ..connection import FOREIGN_ERRORS, describe_loss, new_link
from ..errors import SessionStoreError, StoreClosedError
from ..follower import Backoff, FollowerRequest
from ..hub import Hub, LinkBroken
from ..messages import Applied
from ..operations import AwaitApplied
from .connections import Connections

__all__ = ["HubDriver"]


class HubDriver:
    """Runs while a view is open or a writer has waited; belongs to the event loop it was first used on."""

    def __init__(self, connections: Connections, deadline_s: float) -> None:
        self.hub = Hub()
        self._connections = connections
        self._deadline_s = deadline_s
        self._wake_work = asyncio.Event()
        self._wake_link = asyncio.Event()
        #: set whenever something arrived
        self.progress = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin, if that has not happened yet, and look for what is new to do."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise StoreClosedError("This store's views belong to another event loop; open a store on this one.")
        self._loop = loop
        if not self._tasks:
            self._tasks = [
                loop.create_task(self._keep_link(), name="sessionstore-link"),
                loop.create_task(self._work(), name="sessionstore-calls"),
            ]
        self._wake_work.set()
        self._wake_link.set()

    async def aclose(self) -> None:
        """Run what is left to do, once, and stop."""
        if not self._tasks:
            return
        tasks, self._tasks = self._tasks, []
        await self.run_last(self.hub.close(lease_clock()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run_last(self, requests: list[FollowerRequest]) -> None:
        """Run calls whose answers do not matter: a lease that is not left runs out by itself."""
        if requests:
            await self._connections.execute_all([request.call for request in requests])

    async def await_applied(self, step: AwaitApplied) -> Applied | None:
        """Wait for a message that a revision has been applied everywhere, or for the step's time to run out."""
        future: asyncio.Future[Applied | None] = asyncio.get_running_loop().create_future()

        def wake(applied: Applied | None) -> None:
            if not future.done():
                future.set_result(applied)

        waiter = self.hub.expect(step, wake)
        self.start()
        try:
            async with asyncio.timeout(step.timeout_s):
                return await future
        except TimeoutError:
            return None
        finally:
            self.hub.forget(step, waiter)

    async def _keep_link(self) -> None:
        """Keep a link open for as long as anything is wanted from it."""
        backoff = Backoff()
        while True:
            self._wake_link.clear()
            if not self.hub.wanted:
                await self._wake_link.wait()
                continue
            link = new_link(self._connections.pool)
            try:
                async with asyncio.timeout(self._deadline_s):
                    await link.connect()
                self.hub.link_opened(lease_clock())
                await _first_failure(self._read_link(link, backoff), self._write_link(link))
            except (LinkBroken, *FOREIGN_ERRORS) as exc:
                self.hub.link_lost(describe_loss(exc), lease_clock())
                self._progressed()
            finally:
                with contextlib.suppress(*FOREIGN_ERRORS):
                    await link.disconnect(nowait=True)
            await asyncio.sleep(backoff.failed())

    async def _read_link(self, link: Any, backoff: Backoff) -> None:
        while True:
            reply = await link.read_response(timeout=math.inf)
            self.hub.link_received(reply, lease_clock())
            backoff.succeeded()
            self._progressed()

    async def _write_link(self, link: Any) -> None:
        """Send subscriptions and heartbeats."""
        while True:
            self._wake_link.clear()
            for command in self.hub.link_commands(lease_clock()):
                await link.send_command(*command, check_health=False)
            await _wait(self._wake_link, self.hub.link_wake_at() - lease_clock())

    async def _work(self) -> None:
        """Run the calls that are due, all together, again and again."""
        while True:
            self._wake_work.clear()
            now = lease_clock()
            requests = self.hub.poll(now)
            if not requests:
                await _wait(self._wake_work, self.hub.wake_at(now) - now)
                continue
            results = await self._connections.execute_all([request.call for request in requests])
            now = lease_clock()
            for request, result in zip(requests, results, strict=True):
                if isinstance(result, SessionStoreError):
                    self.hub.failed(request, result, now)
                else:
                    self.hub.answered(request, result, now)
            self.progress.set()

    def _progressed(self) -> None:
        self._wake_work.set()
        self.progress.set()


async def _first_failure(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all of them until one fails; the others are cancelled, and its error is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    if timeout_s == math.inf:
        await event.wait()
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, timeout_s)):
            await event.wait()
