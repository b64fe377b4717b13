"""The driver of a store's hub for threads: one thread reads the link and keeps it alive, one runs the calls.

The hub is only touched under one lock, which is never held across I/O. Look-ups take no lock at all.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
import weakref
from typing import Any

from ..clock import lease_clock
from ..connection import FOREIGN_ERRORS, describe_loss, new_link
from ..errors import SessionStoreError
from ..follower import Backoff, FollowerRequest
from ..hub import Hub, LinkBroken
from ..messages import Applied
from ..operations import AwaitApplied
from .connections import Connections

__all__ = ["HubDriver"]


class HubDriver:
    """Runs while a view is open or a writer has waited."""

    def __init__(self, connections: Connections, deadline_s: float) -> None:
        self.hub = Hub()
        #: guards the hub; notified whenever something arrived or is new to do
        self.changed = threading.Condition()
        self._connections = connections
        self._deadline_s = deadline_s
        self._link: Any = None
        self._send_lock = threading.Lock()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()

    def start(self) -> None:
        """Begin, if that has not happened yet, and look for what is new to do."""
        with self.changed:
            if self._pid != os.getpid():
                # The threads did not come along into the forked process, and its views say so.
                self.hub, self._threads, self._link, self._pid = Hub(), [], None, os.getpid()
            if not self._threads:
                self._closing = False
                self._threads = [
                    threading.Thread(target=self._keep_link, name="sessionstore-link", daemon=True),
                    threading.Thread(target=self._work, name="sessionstore-calls", daemon=True),
                ]
                for thread in self._threads:
                    thread.start()
                _close_at_exit(self)
            self.changed.notify_all()
            link = self._link
        if link is not None:
            with contextlib.suppress(LinkBroken, *FOREIGN_ERRORS):  # the link's own thread notices, too
                self._write_link(link)

    def close(self) -> None:
        """Run what is left to do, once, and stop."""
        with self.changed:
            if not self._threads or self._pid != os.getpid():
                return
            threads, self._threads = self._threads, []
            requests = self.hub.close(lease_clock())
            self._closing = True
            self.changed.notify_all()
        self.run_last(requests)
        self._interrupt_link()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(2 * self._deadline_s)

    def run_last(self, requests: list[FollowerRequest]) -> None:
        """Run calls whose answers do not matter: a lease that is not left runs out by itself."""
        if requests:
            self._connections.execute_all([request.call for request in requests])

    def await_applied(self, step: AwaitApplied) -> Applied | None:
        """Wait for a message that a revision has been applied everywhere, or for the step's time to run out."""
        arrived = threading.Event()
        result: list[Applied | None] = []

        def wake(applied: Applied | None) -> None:
            result.append(applied)
            arrived.set()

        with self.changed:
            waiter = self.hub.expect(step, wake)
        self.start()
        try:
            arrived.wait(step.timeout_s)
        finally:
            with self.changed:
                self.hub.forget(step, waiter)
        return result[0] if result else None

    def _keep_link(self) -> None:
        """Keep a link open for as long as anything is wanted from it."""
        backoff = Backoff()
        while not self._closing:
            with self.changed:
                if not self.hub.wanted:
                    self.changed.wait()
                    continue
            link = new_link(self._connections.pool)
            try:
                link.connect()
                with self.changed:
                    self._link = link
                    self.hub.link_opened(lease_clock())
                self._read_link(link, backoff)
            except (LinkBroken, *FOREIGN_ERRORS) as exc:
                with self.changed:
                    self.hub.link_lost(describe_loss(exc), lease_clock())
                    self.changed.notify_all()
            finally:
                with self._send_lock:
                    # A connection of redis-py's connects again where it is sent something, so none may come after this.
                    self._link = None
                    link.disconnect()
            with self.changed:
                if not self._closing:
                    self.changed.wait(backoff.failed())

    def _read_link(self, link: Any, backoff: Backoff) -> None:
        """Read until the link breaks; send subscriptions and heartbeats in between."""
        while not self._closing:
            self._write_link(link)
            wait_s = self.hub.link_wake_at() - lease_clock()
            if not link.can_read(timeout=max(0.0, wait_s)):
                continue
            reply = link.read_response(timeout=self._deadline_s)
            with self.changed:
                self.hub.link_received(reply, lease_clock())
                self.changed.notify_all()
            backoff.succeeded()

    def _write_link(self, link: Any) -> None:
        with self._send_lock:
            if self._link is not link:
                return
            with self.changed:
                commands = self.hub.link_commands(lease_clock())
            for command in commands:
                link.send_command(*command, check_health=False)

    def _work(self) -> None:
        """Run the calls that are due, all together, again and again."""
        while True:
            with self.changed:
                now = lease_clock()
                requests = self.hub.poll(now)
                if not requests:
                    if self._closing:
                        return
                    wait_s = self.hub.wake_at(now) - now
                    self.changed.wait(None if wait_s == math.inf else max(0.0, wait_s))
                    continue
            results = self._connections.execute_all([request.call for request in requests])
            with self.changed:
                now = lease_clock()
                for request, result in zip(requests, results, strict=True):
                    if isinstance(result, SessionStoreError):
                        self.hub.failed(request, result, now)
                    else:
                        self.hub.answered(request, result, now)
                self.changed.notify_all()

    def _interrupt_link(self) -> None:
        """Wake the thread that waits for the link to say something: Redis answers a PING."""
        link = self._link
        if link is not None:
            with contextlib.suppress(*FOREIGN_ERRORS), self._send_lock:
                link.send_command("PING", check_health=False)


def _close_at_exit(driver: HubDriver) -> None:
    """Leave at the interpreter's exit, so that no writer has to wait for a lease to run out."""
    reference = weakref.ref(driver)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(driver, atexit.unregister, close)
