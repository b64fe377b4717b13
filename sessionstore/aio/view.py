"""The asyncio view."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from ..clock import lease_clock
from ..commands import WriteContext
from ..view import OnStale, View, describe_process
from .hub import HubDriver

__all__ = ["AsyncView"]


class AsyncView(View):
    """A `View` kept right by tasks on the event loop. Use it as a context manager, or call `open` and `aclose`."""

    __slots__ = ("_arguments", "_driver")

    def __init__(
        self,
        driver: HubDriver,
        context: WriteContext,
        on_stale: OnStale,
        wait: bool,
        timeout_s: float,
        touch_interval_s: float,
    ) -> None:
        self._driver = driver
        self._arguments = (context, on_stale, wait, timeout_s, touch_interval_s)
        self._closed = "This view is not open; use it as a context manager, or call open() first."
        self.get = self._refuse

    async def open(self) -> Self:
        """Begin to follow the environment; return when the view is in touch, unless it was made with ``wait=False``.

        Raises
        ------
        StoreUnavailableError
            It was not in touch in time.
        """
        context, on_stale, wait, timeout_s, touch_interval_s = self._arguments
        follower = self._driver.hub.follow(context, describe_process(), lease_clock(), touch_interval_s)
        super().__init__(follower, lease_clock, on_stale)
        self._driver.start()
        if wait:
            try:
                async with asyncio.timeout(timeout_s):
                    while not self.fresh:
                        self._driver.progress.clear()
                        await self._driver.progress.wait()
            except TimeoutError:
                late = self._late(timeout_s)
                await self.aclose()
                raise late from None
            except BaseException:
                await self.aclose()
                raise
        return self

    async def aclose(self) -> None:
        """Flush what was looked up and leave; closing twice is fine. Look-ups raise `StoreClosedError` from then on."""
        if self._closed is not None:
            return
        self._end("This view is closed; open another.")
        await self._driver.run_last(self._driver.hub.unfollow(self._follower, lease_clock()))
        self._driver.start()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
