# Generated from aio/view.py by .ci/unasync.py: change that file instead.
"""The view for threads."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ..clock import lease_clock
from ..replica.view import BaseView
from ..transport.connect import describe_process
from .runner import Runner
from .subscriptions import SubscriptionsDriver


class View(BaseView):
    """A `BaseView` kept up to date by background threads.

    Use it as a context manager, or call `open` and `close`.
    """

    _runner: Runner
    _driver: SubscriptionsDriver

    def open(self) -> Self:
        """Follow the environment. Returns when the view is fresh; at once if it was made with ``wait=False``.

        Raises
        ------
        EnvironmentNotFoundError
            The project has registered environments, but not this one. With ``wait=False``, this is logged instead.
        StoreUnavailableError
            The view was not fresh in time.
        """
        self._driver = self._runner.route_of(self._context.keyspace).driver
        self._driver.start()
        with self._driver.lock:
            self._begin(self._driver.subscriptions, lease_clock, describe_process())
        self._driver.wake()
        if self._wait:
            try:
                if not self._driver.wait_for(self._is_settled, self._timeout_s):
                    raise self._late()
                self._check_settled()
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """Flush the touches and leave. Look-ups raise `StoreClosedError` from then on. Closing twice is fine."""
        if self._closed is not None:
            return
        with self._driver.lock:
            if self._closed is not None:
                return  # meanwhile
            self._end("This view is closed; open another.")
            self._driver.subscriptions.unfollow(self._follower, lease_clock())
        self._driver.await_drained(self._follower)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
