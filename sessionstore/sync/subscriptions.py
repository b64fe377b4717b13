"""The driver of a store's subscriptions for threads: one thread keeps the pub/sub connection, another runs the calls.

One lock guards the subscriptions. No thread holds it during I/O. Look-ups take no lock at all.

Each waiting thread has its own queue. The standard library's conditions and events are Python code: a KeyboardInterrupt
inside one can leave its lock locked, which would block every thread of the driver.

The thread that reads a change also acknowledges it, and reads the answer if it arrives at once: a handover to the other
thread would cost more than the round trip. The other thread waits for slower answers, so that reading can go on.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
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
from .receiving import Receiver

#: Seconds that the reading thread waits for the answer to an acknowledgement.
_AT_ONCE_S = 0.005


#: Batches that are begun before the first is answered.
_BEGUN = 2


class SubscriptionsDriver:
    """Runs from the first view or waiting writer on."""

    def __init__(self, connections: Connections, config: StoreConfig) -> None:
        self._deadline_s = min(config.deadline_s, CALL_WITHIN_S)
        self._link = connections.link
        self._pool = connections.pool
        self._connections = connections.with_deadline(self._deadline_s)
        self._closing = False
        #: whether it has been closed, and nothing of it is left
        self.is_closed = False
        self.begin_anew()
        _drivers.add(self)

    def begin_anew(self) -> None:
        """Reset all state: a forked process has no threads, and its locks may be locked for good."""
        self.subscriptions = Subscriptions(moves=self._link.moves)
        #: guards the subscriptions
        self.lock = threading.RLock()
        #: each holds an item if there is news: for the thread that runs the calls, for the one that keeps the pub/sub
        #: connection, and for each waiting thread
        self._work_news: SimpleQueue[None] = SimpleQueue()
        self._pubsub_news: SimpleQueue[None] = SimpleQueue()
        self._waiters: set[SimpleQueue[None]] = set()
        #: until when the thread that runs the calls sleeps
        self._asleep_until = -math.inf
        #: acknowledgements and pages without an answer yet, or not sent because there was no connection
        self._unfinished: deque[tuple[list[FollowerRequest], Sent | None]] = deque()
        #: set by closing, to end the pauses before a retry
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._pubsub: Any = None
        self._send_lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def close_inherited(self) -> None:
        """Close the sockets that a forked process inherited."""
        if self._pubsub is not None:
            self._pubsub.disconnect()
        self._pool.close_inherited()

    def start(self) -> None:
        """Start the threads, once.

        Raises
        ------
        StoreClosedError
        """
        with self.lock:
            if self._closing:
                raise StoreClosedError(CLOSED)
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._keep_subscribed, name="sessionstore-pubsub", daemon=True),
                    threading.Thread(target=self._work, name="sessionstore-calls", daemon=True),
                ]
                for thread in self._threads:
                    thread.start()
                _close_at_exit(self)

    def wake(self) -> None:
        """Wake the threads: there may be something to do."""
        self._tell_all()
        connection = self._pubsub
        if connection is not None:
            # The thread that keeps the connection sees a failure too.
            with contextlib.suppress(ConnectionBroken, *FOREIGN_ERRORS):
                self._write(connection)

    def close(self) -> None:
        """Drain the views, and close the pool."""
        self.drain()
        self._pool.close()
        self.is_closed = True

    def close_soon(self) -> threading.Thread:
        """Begin to close."""
        thread = threading.Thread(target=self.close, name="sessionstore-close", daemon=True)
        thread.start()
        return thread

    def drain(self) -> None:
        """Run the last calls, once, and stop. The pool stays open for code that runs later at exit."""
        with self.lock:
            self._closing = True
            self.subscriptions.close(lease_clock())
            threads, self._threads = self._threads, []
        self._ended.put(None)
        self._tell_all()
        self._interrupt_read()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(3 * self._deadline_s)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until the condition is true; False if it is not in time. It is checked when anything arrives."""
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
        """Wait until the last calls of an environment have run, if its last view was closed."""
        self.wake()
        self.wait_for(lambda: follower.drained or not follower.closed or not self._threads, 3 * self._deadline_s)

    def await_applied(self, step: AwaitApplied) -> Applied | None:
        """Wait for a message that every view has applied a revision; None if none arrives in time."""
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

    def _keep_subscribed(self) -> None:
        """Keep a pub/sub connection open while anything is subscribed."""
        backoff = Backoff()
        while not self._closing:
            if not self.subscriptions.wanted:
                _await(self._pubsub_news, math.inf)
                continue
            connection: Any = None
            try:
                connection = self._link.open(self._deadline_s)
                with self.lock:
                    self._pubsub = connection
                    self.subscriptions.connected(lease_clock())
                self._read(connection, backoff)
            except (ConnectionBroken, *FOREIGN_ERRORS) as exc:
                self._link.doubt(exc)
                self._lose_connection(describe_loss(without_address(exc) if self._link.moves else exc))
            except Exception:
                log.exception("The subscription failed unexpectedly; subscribing again.")
                with self.lock:
                    self.subscriptions.crashed(lease_clock())  # this thread's acknowledgements fail too
                self._lose_connection("an unexpected error, see the log")
            finally:
                with self._send_lock:
                    # Send no command from here on: redis-py would connect again.
                    self._pubsub = None
                    if connection is not None:
                        connection.disconnect()
            self._pause(backoff.failed())

    def _read(self, connection: Any, backoff: Backoff) -> None:
        """Read until the connection breaks, and send subscriptions and heartbeats."""
        receiver = Receiver(connection)
        self._write(connection)
        while not self._closing:
            wait_s = self.subscriptions.commands_due_at() - lease_clock()
            if wait_s <= 0:
                self._write(connection)
                continue
            replies = receiver.receive(wait_s)
            if not replies:
                continue
            with self.lock:
                now = lease_clock()
                for reply in replies:
                    self.subscriptions.received(reply, now)
                acks = self.subscriptions.poll_acks(now)
                if not acks:
                    self._notify(now)
            if acks:
                self._acknowledge(acks)
            backoff.succeeded()

    def _acknowledge(self, acks: list[FollowerRequest]) -> None:
        """Send acknowledgements, and read their answers if they arrive at once."""
        sent = self._connections.begin([ack.call for ack in acks])
        results = None if sent is None else self._connections.finish(sent, _AT_ONCE_S)
        with self.lock:
            if results is None:
                self._unfinished.append((acks, sent))
                self._tell_all()
            else:
                now = lease_clock()
                deliver(self.subscriptions, acks, results, now)
                self._notify(now)

    def _notify(self, now: float) -> None:
        """Wake the threads that have something to do. Waking others would cost more than applying a change."""
        if self.subscriptions.wake_at(now) < self._asleep_until:
            _tell(self._work_news)
        self._tell_waiters()

    def _tell_all(self) -> None:
        _tell(self._work_news)
        _tell(self._pubsub_news)
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        if self._waiters:
            for news in self._waiters.copy():
                _tell(news)

    def _pause(self, seconds: float) -> None:
        """Wait before a retry, or until the store is closed."""
        if _await(self._ended, seconds):
            self._ended.put(None)  # for the other thread

    def _write(self, connection: Any) -> None:
        with self._send_lock:
            if self._pubsub is not connection:
                return
            with self.lock:
                commands = self.subscriptions.commands_due(lease_clock())
            for command in commands:
                connection.send_command(*command, check_health=False)

    def _lose_connection(self, reason: str) -> None:
        with self.lock:
            self.subscriptions.disconnected(reason, lease_clock())
        self._tell_all()

    def _interrupt_read(self) -> None:
        """Wake the reading thread: Redis answers a PING."""
        with self._send_lock:
            if self._pubsub is not None:
                with contextlib.suppress(*FOREIGN_ERRORS):
                    self._pubsub.send_command("PING", check_health=False)

    def _work(self) -> None:
        """Run the calls that are due, all together, until the store is closed; then those that are left."""
        backoff = Backoff()
        while not self._closing or self.subscriptions.draining or self._unfinished:
            try:
                self._run_due()
                backoff.succeeded()
            except Exception:
                log.exception("A view's calls failed unexpectedly; all views of this store resync.")
                with self.lock:
                    self.subscriptions.crashed(lease_clock())
                self._pause(backoff.failed())

    def _run_due(self) -> None:
        sent: Sent | None = None
        with self.lock:
            now = lease_clock()
            syncing = self.subscriptions.syncing
            requests = []
            if not self._unfinished or (syncing and len(self._unfinished) < _BEGUN):
                requests = self.subscriptions.poll(now)
            begins = syncing and bool(requests)
            if self._unfinished and not requests:
                requests, sent = self._unfinished.popleft()
            if not requests:
                self._asleep_until = self.subscriptions.wake_at(now)
        if begins:
            # Redis reads the next page while this one is applied.
            begun = self._connections.begin([request.call for request in requests], connect=True)
            with self.lock:
                self._unfinished.append((requests, begun))
            return
        if not requests:
            if not self._closing:
                _await(self._work_news, self._asleep_until - now)
            self._asleep_until = -math.inf
            return
        results = None if sent is None else self._connections.finish(sent)
        if results is None:
            results = self._connections.execute_all([request.call for request in requests])
        with self.lock:
            deliver(self.subscriptions, requests, results, lease_clock())
        _tell(self._pubsub_news)
        self._tell_waiters()


def close_all(drivers: Sequence[SubscriptionsDriver]) -> None:
    """Close the drivers of one store together."""
    first, *others = drivers
    threads = [driver.close_soon() for driver in others]
    first.close()
    for thread in threads:
        thread.join()


def _tell(news: SimpleQueue[None]) -> None:
    # One item is enough: the reader looks at everything.
    if news.empty():
        news.put(None)


def _await(news: SimpleQueue[None], seconds: float) -> bool:
    """Wait for news and take all of it; False if there is none in time."""
    try:
        news.get(timeout=None if seconds == math.inf else max(0.0, seconds))
    except Empty:
        return False
    with contextlib.suppress(Empty):
        while True:
            news.get_nowait()
    return True


def _close_at_exit(driver: SubscriptionsDriver) -> None:
    """Leave when the interpreter exits, so that no writer waits for a lease to expire."""
    reference = weakref.ref(driver)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.drain()

    atexit.register(close)
    # Not at exit: the finalizer might run first.
    weakref.finalize(driver, atexit.unregister, close).atexit = False


_drivers: weakref.WeakSet[SubscriptionsDriver] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in tuple(_drivers):
        driver.close_inherited()
        driver.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
