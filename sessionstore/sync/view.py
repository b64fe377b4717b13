# Generated from aio/view.py by .ci/unasync.py: change that file instead.
"""The view for threads."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ..clock import lease_clock
from ..protocol.calls import WriteContext
from ..replica.view import BaseView, OnStale
from ..transport.connect import describe_process
from .subscriptions import SubscriptionsDriver


class View(BaseView):
    """A `BaseView` kept right by background threads. Use it as a context manager, or call `open` and `close`."""

    __slots__ = ("_driver",)

    def __init__(
        self,
        driver: SubscriptionsDriver,
        context: WriteContext,
        on_stale: OnStale,
        wait: bool,
        timeout_s: float,
        touch_interval_s: float,
    ) -> None:
        super().__init__(context, on_stale, wait, timeout_s, touch_interval_s)
        self._driver = driver

    def open(self) -> Self:
        """Begin to follow the environment; return when the view is in touch, unless it was made with ``wait=False``.

        Raises
        ------
        StoreUnavailableError
            It was not in touch in time.
        """
        self._driver.start()
        with self._driver.lock:
            self._begin(self._driver.subscriptions, lease_clock, describe_process())
        self._driver.wake()
        if self._wait:
            try:
                if not self._driver.wait_for(self._is_settled, self._timeout_s):
                    raise self._late()
                self._check_open()
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """Flush what was looked up and leave; closing twice is fine. Look-ups raise `StoreClosedError` from then on."""
        with self._driver.lock:
            if self._closed is not None:
                return
            self._end("This view is closed; open another.")
            self._driver.subscriptions.unfollow(self._follower, lease_clock())
        self._driver.await_drained(self._follower)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
