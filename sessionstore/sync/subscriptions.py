"""The driver of a store's hub for threads: one thread reads the link and keeps it alive, one runs the calls.

The hub is only touched under one lock, which is never held across I/O. Look-ups take no lock at all.

Whoever waits does so on a queue of its own. The standard library's conditions and events are made of Python code, in
the midst of which a KeyboardInterrupt can leave their lock locked, and every thread of the driver waiting for it.

An acknowledgement that a writer waits for is sent by the thread that has read the change, which also takes the answer
if that comes at once: to hand it over to the other thread would cost more than the round trip. Where it takes longer,
the other thread waits for it, since changes have to be read meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from ..clock import lease_clock
from ..errors import SessionStoreError, StoreClosedError
from ..options import CLOSED, StoreConfig
from ..protocol.messages import Applied
from ..protocol.operations import AwaitApplied
from ..replica.follower import Backoff, Follower, FollowerRequest
from ..replica.subscriptions import CALL_WITHIN_S, ConnectionBroken, Subscriptions, log
from ..transport.connect import never_reconnect, new_pubsub_connection
from ..transport.errors import FOREIGN_ERRORS, describe_loss
from .connections import Connections, Sent

#: Seconds that the thread which reads the link waits for the answer to an acknowledgement.
_AT_ONCE_S = 0.005


class SubscriptionsDriver:
    """Runs from the first view or waiting writer on."""

    def __init__(self, connections: Connections, config: StoreConfig) -> None:
        self._deadline_s = min(config.deadline_s, CALL_WITHIN_S)
        self._pool = connections.pool
        self._connections = connections.with_deadline(self._deadline_s)
        self._closing = False
        self.begin_anew()
        _drivers.add(self)

    def begin_anew(self) -> None:
        """Be as at first: for a forked process, where there are no threads, and locks may be locked for good."""
        self.subscriptions = Subscriptions()
        #: guards the hub
        self.lock = threading.RLock()
        #: each holds an item where something arrived or is new to do: for the thread that runs the calls, the one that
        #: keeps the link, and for whoever waits for something to arrive
        self._work_news: SimpleQueue[None] = SimpleQueue()
        self._link_news: SimpleQueue[None] = SimpleQueue()
        self._waiters: set[SimpleQueue[None]] = set()
        #: until when the thread that runs the calls sleeps
        self._asleep_until = -math.inf
        #: acknowledgements that were not answered at once; or not sent, since no connection was at hand
        self._unfinished: deque[tuple[list[FollowerRequest], Sent | None]] = deque()
        #: set when it closes, to end all waiting for another try
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._link: Any = None
        self._send_lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def close_inherited(self) -> None:
        """Close the sockets that came along into a forked process."""
        if self._link is not None:
            self._link.disconnect()
        self._pool.close_inherited()

    def start(self) -> None:
        """Begin, if that has not happened yet.

        Raises
        ------
        StoreClosedError
        """
        with self.lock:
            if self._closing:
                raise StoreClosedError(CLOSED)
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._keep_link, name="sessionstore-link", daemon=True),
                    threading.Thread(target=self._work, name="sessionstore-calls", daemon=True),
                ]
                for thread in self._threads:
                    thread.start()
                _close_at_exit(self)

    def wake(self) -> None:
        """Look for what is new to do."""
        self._tell_all()
        link = self._link
        if link is not None:
            with contextlib.suppress(ConnectionBroken, *FOREIGN_ERRORS):  # the link's own thread notices, too
                self._write_link(link)

    def close(self) -> None:
        """Run what is left to do, once, and stop."""
        with self.lock:
            self._closing = True
            self.subscriptions.close(lease_clock())
            threads, self._threads = self._threads, []
        self._ended.put(None)
        self._tell_all()
        self._interrupt_link()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(3 * self._deadline_s)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something that arrives makes the condition true; False where that takes too long."""
        news: SimpleQueue[None] = SimpleQueue()
        until = lease_clock() + timeout_s
        try:
            self._waiters.add(news)
            while True:
                with self.lock:
                    if condition():
                        return True
                left_s = until - lease_clock()
                if left_s <= 0:
                    return False
                _await(news, left_s)
        finally:
            self._waiters.discard(news)

    def await_drained(self, follower: Follower) -> None:
        """Wait until the last calls of a view have run, if it was the last one of its environment."""
        self.wake()
        self.wait_for(lambda: follower.drained or not follower.closed or not self._threads, 3 * self._deadline_s)

    def await_applied(self, step: AwaitApplied) -> Applied | None:
        """Wait for a message that a revision has been applied everywhere, or for the step's time to run out."""
        self.start()
        arrived: SimpleQueue[Applied | None] = SimpleQueue()
        with self.lock:
            waiter = self.subscriptions.expect(step, arrived.put, lease_clock())
            subscribed = self.subscriptions.is_subscribed(step.keyspace.applied)
        if not subscribed:
            self.wake()
        try:
            return arrived.get(timeout=step.timeout_s)
        except Empty:
            return None
        finally:
            with self.lock:
                self.subscriptions.forget(step, waiter)

    def _keep_link(self) -> None:
        """Keep a link open for as long as anything is wanted from it."""
        backoff = Backoff()
        while not self._closing:
            if not self.subscriptions.wanted:
                _await(self._link_news, math.inf)
                continue
            link = new_pubsub_connection(self._pool, self._deadline_s)
            try:
                link.connect()
                never_reconnect(link)
                with self.lock:
                    self._link = link
                    self.subscriptions.connected(lease_clock())
                self._read_link(link, backoff)
            except (ConnectionBroken, *FOREIGN_ERRORS) as exc:
                self._lose_link(describe_loss(exc))
            except Exception:
                log.exception("The subscription failed unexpectedly; it is made anew.")
                with self.lock:
                    self.subscriptions.crashed(lease_clock())  # acknowledgements that were asked for here, too
                self._lose_link("an unexpected error, see the log")
            finally:
                with self._send_lock:
                    # A connection of redis-py's connects again where it is sent something, so none may come after this.
                    self._link = None
                    link.disconnect()
            self._pause(backoff.failed())

    def _read_link(self, link: Any, backoff: Backoff) -> None:
        """Read until the link breaks; send subscriptions and heartbeats in between."""
        self._write_link(link)
        while not self._closing:
            wait_s = self.subscriptions.commands_due_at() - lease_clock()
            if wait_s <= 0:
                self._write_link(link)
                continue
            if not link.can_read(timeout=wait_s):
                continue
            reply = link.read_response(timeout=self._deadline_s)
            with self.lock:
                now = lease_clock()
                self.subscriptions.received(reply, now)
                acks = self.subscriptions.poll_acks(now)
                if not acks:
                    self._notify(now)
            if acks:
                self._acknowledge(acks)
            backoff.succeeded()

    def _acknowledge(self, acks: list[FollowerRequest]) -> None:
        """Send acknowledgements, and take their answers if they come at once."""
        sent = self._connections.begin([ack.call for ack in acks])
        results = None if sent is None else self._connections.finish(sent, _AT_ONCE_S)
        with self.lock:
            if results is None:
                self._unfinished.append((acks, sent))
                self._tell_all()
            else:
                now = lease_clock()
                self._take(acks, results, now)
                self._notify(now)

    def _notify(self, now: float) -> None:
        """Wake who may have something to do. To wake a thread for nothing costs more than to apply a change."""
        if self.subscriptions.wake_at(now) < self._asleep_until:
            _tell(self._work_news)
        self._tell_waiters()

    def _tell_all(self) -> None:
        _tell(self._work_news)
        _tell(self._link_news)
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        if self._waiters:
            for news in self._waiters.copy():
                _tell(news)

    def _pause(self, seconds: float) -> None:
        """Wait before another try, unless it closes."""
        if _await(self._ended, seconds):
            self._ended.put(None)  # for the other thread

    def _write_link(self, link: Any) -> None:
        with self._send_lock:
            if self._link is not link:
                return
            with self.lock:
                commands = self.subscriptions.commands_due(lease_clock())
            for command in commands:
                link.send_command(*command, check_health=False)

    def _lose_link(self, reason: str) -> None:
        with self.lock:
            self.subscriptions.disconnected(reason, lease_clock())
        self._tell_all()

    def _interrupt_link(self) -> None:
        """Wake the thread that waits for the link to say something: Redis answers a PING."""
        with self._send_lock:
            if self._link is not None:
                with contextlib.suppress(*FOREIGN_ERRORS):
                    self._link.send_command("PING", check_health=False)

    def _work(self) -> None:
        """Run the calls that are due, all together, again and again; and those that are left in the end."""
        backoff = Backoff()
        while not self._closing or self.subscriptions.draining or self._unfinished:
            try:
                self._run_due()
                backoff.succeeded()
            except Exception:
                log.exception("A view's calls failed unexpectedly; all views of this store read everything anew.")
                with self.lock:
                    self.subscriptions.crashed(lease_clock())
                self._pause(backoff.failed())

    def _run_due(self) -> None:
        sent: Sent | None = None
        with self.lock:
            now = lease_clock()
            if self._unfinished:
                requests, sent = self._unfinished.popleft()
            else:
                requests = self.subscriptions.poll(now)
            if not requests:
                self._asleep_until = self.subscriptions.wake_at(now)
        if not requests:
            if not self._closing:
                _await(self._work_news, self._asleep_until - now)
            self._asleep_until = -math.inf
            return
        results = None if sent is None else self._connections.finish(sent)
        if results is None:
            results = self._connections.execute_all([request.call for request in requests])
        with self.lock:
            self._take(requests, results, lease_clock())
        _tell(self._link_news)
        self._tell_waiters()

    def _take(self, requests: list[FollowerRequest], results: list[Any], now: float) -> None:
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, SessionStoreError):
                self.subscriptions.failed(request, result, now)
            else:
                self.subscriptions.answered(request, result, now)


def _tell(news: SimpleQueue[None]) -> None:
    # Who has not taken the last one yet will see what this one is about, too.
    if news.empty():
        news.put(None)


def _await(news: SimpleQueue[None], seconds: float) -> bool:
    """Wait for news, and take all that there are; False where none came in time."""
    try:
        news.get(timeout=None if seconds == math.inf else max(0.0, seconds))
    except Empty:
        return False
    with contextlib.suppress(Empty):
        while True:
            news.get_nowait()
    return True


def _close_at_exit(driver: SubscriptionsDriver) -> None:
    """Leave at the interpreter's exit, so that no writer has to wait for a lease to run out."""
    reference = weakref.ref(driver)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    # Not at exit: this one might come first.
    weakref.finalize(driver, atexit.unregister, close).atexit = False


_drivers: weakref.WeakSet[SubscriptionsDriver] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in tuple(_drivers):
        driver.close_inherited()
        driver.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
