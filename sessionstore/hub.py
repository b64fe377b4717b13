"""Everything a store follows, over one subscription link: its environments, and what its waiting writers wait for.

No I/O, no clock, no thread. A driver keeps one connection subscribed to the channels that are wanted and hands over
what it receives; in a second flow it runs the calls that `poll` asks for, all that are due together. redis-py's own
PubSub is not used: it reconnects silently, and what was published in the meantime is lost. Here each connection begins
with `link_opened`.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

from .commands import WriteContext
from .errors import CorruptDataError, SessionStoreError
from .follower import DEFAULT_TOUCH_INTERVAL_S, Follower, FollowerRequest
from .messages import Applied, decode_applied
from .operations import AwaitApplied

__all__ = ["HEARTBEAT_S", "PONG_WITHIN_S", "Hub", "LinkBroken", "Waiter"]

#: Seconds between two heartbeats on the subscription link.
HEARTBEAT_S = 0.5
#: Seconds in which something has to arrive after a heartbeat, else the link is dead.
PONG_WITHIN_S = 1.0

#: Channels of environments with waiting writers that stay subscribed.
_MAX_APPLIED_CHANNELS = 256

_log = logging.getLogger("sessionstore")


class LinkBroken(Exception):  # noqa: N818  never leaves the drivers
    """The link can't be trusted any more: close it and open another."""


class Waiter:
    """A writer that waits for a revision; `wake` is called once, with the message or with None to look for itself."""

    __slots__ = ("rev", "wake")

    def __init__(self, rev: int, wake: Callable[[Applied | None], None]) -> None:
        self.rev = rev
        self.wake = wake


class Hub:
    """The followed environments and waiting writers of one store."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng
        self._followers: dict[str, Follower] = {}
        self._users: dict[str, int] = {}
        self._waiters: dict[str, list[Waiter]] = {}
        #: channels of this link: asked for and not confirmed yet, confirmed, and how often left but not confirmed yet
        self._asked: set[str] = set()
        self._confirmed: set[str] = set()
        self._leaving: Counter[str] = Counter()
        self._open = False
        self._pinged_at = -inf
        self._heard_at = -inf
        self._looked_at = -inf
        self._was_fresh: dict[str, bool] = {}

    # What is followed

    def follow(
        self, context: WriteContext, info: str, now: float, touch_interval_s: float = DEFAULT_TOUCH_INTERVAL_S
    ) -> Follower:
        """Follow an environment; views of the same one share its follower."""
        channel = context.keys.changes
        follower = self._followers.get(channel)
        if follower is None:
            follower = self._followers[channel] = Follower(context, info, touch_interval_s, self._rng)
            if channel in self._confirmed:
                follower.subscribed(now)
        follower.touch_interval_s = min(follower.touch_interval_s, touch_interval_s)
        self._users[channel] = self._users.get(channel, 0) + 1
        return follower

    def unfollow(self, follower: Follower, now: float) -> list[FollowerRequest]:
        """One view less; with the last one the environment is left. Returns the calls to run for that."""
        channel = follower.keys.changes
        if self._followers.get(channel) is not follower:
            return []  # the store was closed before its view
        self._users[channel] -= 1
        if self._users[channel]:
            return []
        del self._users[channel], self._followers[channel]
        self._was_fresh.pop(channel, None)
        return follower.close(now)

    def expect(self, step: AwaitApplied, wake: Callable[[Applied | None], None]) -> Waiter:
        """Have `wake` called when every view has applied a revision, as far as messages tell."""
        channel = step.keys.applied
        if channel not in self._waiters and len(self._waiters) >= _MAX_APPLIED_CHANNELS:
            idle = next((name for name, waiters in self._waiters.items() if not waiters), None)
            if idle is not None:
                del self._waiters[idle]
        waiter = Waiter(step.rev, wake)
        self._waiters.setdefault(channel, []).append(waiter)
        return waiter

    def forget(self, step: AwaitApplied, waiter: Waiter) -> None:
        """The waiter has been woken or has given up."""
        waiters = self._waiters.get(step.keys.applied, [])
        if waiter in waiters:
            waiters.remove(waiter)

    # The link

    @property
    def wanted(self) -> bool:
        """Whether there is anything to subscribe to."""
        return bool(self._followers or self._waiters)

    def link_opened(self, now: float) -> None:
        """A new connection is there, with no subscription."""
        self._open = True
        self._forget_link()
        self._pinged_at = self._heard_at = self._looked_at = now

    def link_lost(self, reason: str, now: float) -> None:
        """The connection is gone."""
        self._open = False
        self._forget_link()
        for follower in self._followers.values():
            follower.lost(reason, now)
        self._tell()

    def link_commands(self, now: float) -> list[tuple[str, ...]]:
        """Take what is to be sent on the link now: subscriptions and heartbeats.

        Raises
        ------
        LinkBroken
            A heartbeat was not answered in time.
        """
        if not self._open:
            return []
        if now - self._looked_at > 2 * PONG_WITHIN_S:
            # This process was stopped or its event loop stalled: what was heard in that time has not been read yet.
            self._heard_at = now
        self._looked_at = now
        if self._pinged_at > self._heard_at and now - self._pinged_at > PONG_WITHIN_S:
            raise LinkBroken(f"nothing was heard from Redis for {now - self._heard_at:.1f} s")
        commands: list[tuple[str, ...]] = []
        here = self._asked | self._confirmed
        missing = [name for name in (*self._followers, *self._waiters) if name not in here]
        if missing:
            self._asked.update(missing)
            commands.append(("SUBSCRIBE", *missing))
        surplus = [name for name in self._confirmed if name not in self._followers and name not in self._waiters]
        if surplus:
            self._confirmed.difference_update(surplus)
            self._leaving.update(surplus)
            commands.append(("UNSUBSCRIBE", *surplus))
        if now - max(self._pinged_at, self._heard_at) >= HEARTBEAT_S and self._pinged_at <= self._heard_at:
            self._pinged_at = now
            commands.append(("PING",))
        return commands

    def link_wake_at(self) -> float:
        """Local time at which `link_commands` has to be called again at the latest."""
        if not self._open:
            return inf
        if self._pinged_at > self._heard_at:
            return self._pinged_at + PONG_WITHIN_S + 0.001
        return max(self._pinged_at, self._heard_at) + HEARTBEAT_S

    def link_received(self, reply: Any, now: float) -> None:
        """Take one reply of the link, as RESP2 has it.

        Raises
        ------
        LinkBroken
            It is an error, or nothing that a subscription receives.
        """
        self._heard_at = now
        if isinstance(reply, bytes | str):
            return  # a pong that is no array
        if not isinstance(reply, list | tuple) or len(reply) < 2:
            raise LinkBroken("Redis sent something that is no message")
        kind, channel = _text(reply[0]), _text(reply[1])
        if kind == "message":
            self._message(channel, reply[2], now)
        elif kind == "subscribe":
            self._subscribed(channel, now)
        elif kind in ("unsubscribe", "sunsubscribe"):
            self._unsubscribed(channel, now)
        elif kind != "pong":
            raise LinkBroken("Redis sent something that is no message")
        self._tell()

    # The calls

    def poll(self, now: float) -> list[FollowerRequest]:
        """Take the calls that are due, of all environments together."""
        requests = [request for follower in self._followers.values() for request in follower.poll(now)]
        self._tell()
        return requests

    def answered(self, request: FollowerRequest, reply: Any, now: float) -> None:
        """Bring an answer."""
        request.follower.answered(request, reply, now)
        self._tell()

    def failed(self, request: FollowerRequest, error: SessionStoreError, now: float) -> None:
        """Say that no answer will come."""
        request.follower.failed(request, error, now)
        self._tell()

    def wake_at(self, now: float) -> float:
        """Local time at which `poll` has to be called again at the latest."""
        return min((follower.wake_at(now) for follower in self._followers.values()), default=inf)

    def close(self, now: float) -> list[FollowerRequest]:
        """Leave everything. Returns the calls to run for that; their answers do not matter."""
        requests = [request for follower in self._followers.values() for request in follower.close(now)]
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.wake(None)
        self._followers.clear()
        self._users.clear()
        self._waiters.clear()
        return requests

    # Within

    def _message(self, channel: str, payload: bytes | str, now: float) -> None:
        follower = self._followers.get(channel)
        if follower is not None:
            follower.message(payload, now)
            return
        waiters = self._waiters.get(channel)
        if not waiters:
            return
        try:
            applied: Applied | None = decode_applied(payload)
        except CorruptDataError:
            applied = None
        for waiter in tuple(waiters):
            if applied is None or applied.rev >= waiter.rev:
                waiters.remove(waiter)
                waiter.wake(applied)

    def _subscribed(self, channel: str, now: float) -> None:
        asked = channel in self._asked
        self._asked.discard(channel)
        self._confirmed.add(channel)
        if channel in self._followers:
            if asked:
                self._followers[channel].subscribed(now)
            else:
                self._followers[channel].doubt("Redis confirmed a subscription that nobody asked for", now)
        elif channel in self._waiters:
            # What was published before the confirmation is missed: look.
            for waiter in self._waiters[channel]:
                waiter.wake(None)
            self._waiters[channel].clear()

    def _unsubscribed(self, channel: str, now: float) -> None:
        if self._leaving[channel]:
            self._leaving[channel] -= 1
            return
        self._confirmed.discard(channel)
        if channel in self._followers:
            self._followers[channel].lost("Redis ended the subscription", now)

    def _forget_link(self) -> None:
        self._asked.clear()
        self._confirmed.clear()
        self._leaving.clear()

    def _tell(self) -> None:
        """Say once in the log when an environment is lost touch with, and when it is regained."""
        for channel, follower in self._followers.items():
            fresh = follower.fresh_until > 0.0
            if fresh == self._was_fresh.get(channel, False):
                continue
            if channel in self._was_fresh or fresh:
                where = f"{follower.keys.project}/{follower.keys.environment}"
                if fresh:
                    _log.info("The view of %s is in touch, at revision %d.", where, follower.replica.rev)
                else:
                    _log.warning(
                        "The view of %s is out of touch and serves what it has: %s.", where, follower.last_error
                    )
            self._was_fresh[channel] = fresh


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
