"""The view for threads."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ..clock import lease_clock
from ..commands import WriteContext
from ..view import OnStale, View, describe_process
from .hub import HubDriver

__all__ = ["SyncView"]


class SyncView(View):
    """A `View` kept right by background threads. Use it as a context manager, or call `open` and `close`."""

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

    def open(self) -> Self:
        """Begin to follow the environment; return when the view is in touch, unless it was made with ``wait=False``.

        Raises
        ------
        StoreUnavailableError
            It was not in touch in time.
        """
        context, on_stale, wait, timeout_s, touch_interval_s = self._arguments
        with self._driver.changed:
            follower = self._driver.hub.follow(context, describe_process(), lease_clock(), touch_interval_s)
            super().__init__(follower, lease_clock, on_stale)
        self._driver.start()
        if wait:
            try:
                with self._driver.changed:
                    in_touch = self._driver.changed.wait_for(lambda: self.fresh, timeout_s)
                if not in_touch:
                    raise self._late(timeout_s)
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """Flush what was looked up and leave; closing twice is fine. Look-ups raise `StoreClosedError` from then on."""
        with self._driver.changed:
            if self._closed is not None:
                return
            self._end("This view is closed; open another.")
            requests = self._driver.hub.unfollow(self._follower, lease_clock())
        self._driver.run_last(requests)
        self._driver.start()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
