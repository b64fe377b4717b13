"""Processes that follow an environment: with views of this library, and by hand with redis-py, side by side.

Each process holds some followers of either kind, each with connections of its own: a store with one view is what a
proxy has. Views and subscriptions by hand run in the same process and the same way, in threads or on one event loop, so
that both have the same machine to themselves, or not. While one kind works, the other one only waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import redis
import redis.asyncio

from sessionstore import AsyncSessionStore, Session, SessionStore

from .dataset import ENVIRONMENT, PROJECT
from .peers import Peer

__all__ = ["BY_HAND", "REPLIES", "Followers", "Seen"]

#: The channels of what is done by hand: changes, and the receivers' replies.
BY_HAND, REPLIES = "by-hand", "by-hand:replies"

#: Processes that followers are spread over, at most.
_PROCESSES = 8

#: Seconds in which all must have seen what was sent.
_PATIENCE_S = 30.0

#: Number of the change → the monotonic times at which it was there, one for each follower.
Seen = dict[int, list[float]]

_VIEW, _HAND = 0, 1


class Followers:
    """`count` views and as many subscriptions by hand, spread over processes.

    Parameters
    ----------
    url : str
        Redis.
    count : int
        Followers of each kind.
    asynchronous : bool
        On an event loop in each process, or in threads.
    reply : bool
        Whether who follows by hand publishes a reply to each change.
    """

    def __init__(self, url: str, count: int, *, asynchronous: bool, reply: bool) -> None:
        self.count = count
        target = _follow_on_a_loop if asynchronous else _follow_in_threads
        processes = min(count, _PROCESSES)
        shares = [count // processes + (number < count % processes) for number in range(processes)] if count else []
        self._stack = contextlib.ExitStack()
        self._peers = [self._stack.enter_context(Peer(target, url, share, reply)) for share in shares]
        for peer in self._peers:
            peer.receive()

    def await_seen(self, changes: int) -> tuple[Seen, Seen]:
        """Wait until all have seen that many changes; returns what views have seen since the last time, and by hand.

        Raises
        ------
        TimeoutError
        """
        found: tuple[Seen, Seen] = ({}, {})
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            for peer in self._peers:
                peer.tell("collect")
            for peer in self._peers:
                for kind, notes in enumerate(peer.receive()):
                    for number, seen_at in notes:
                        found[kind].setdefault(number, []).append(seen_at)
            counts = [sum(map(len, seen.values())) for seen in found]
            if counts == [changes * self.count] * 2:
                return found
            if time.monotonic() > give_up:
                raise TimeoutError(
                    f"{self.count} followers of each kind had {changes} changes, and have seen {counts}."
                )
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


Notes = list[tuple[int, float]]


def _noting(notes: Notes) -> Callable[[str, Session | None], None]:
    """Make a callback that notes when a change, whose number is its label, can be looked up."""

    def changed(session_key: str, session: Session | None) -> None:
        seen_at = time.monotonic()
        if session is not None and session.label is not None:
            notes.append((int(session.label), seen_at))

    return changed


def _number_of(message: Any) -> int | None:
    """The number that a message by hand begins with; None where Redis only confirms something."""
    return int(message["data"].partition(b" ")[0]) if message["type"] == "message" else None


def _answer(pipe: Connection, kinds: Iterable[Notes]) -> bool:
    """Answer one question; False where it was the last one."""
    if pipe.recv() is None:
        return False
    answer = []
    for notes in kinds:
        answer.append(list(notes))
        notes.clear()
    pipe.send(answer)
    return True


def _follow_in_threads(pipe: Connection, url: str, count: int, reply: bool) -> None:
    kinds: tuple[Notes, Notes] = ([], [])
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            store = stack.enter_context(SessionStore.from_url(url))
            stack.enter_context(store.environment(PROJECT, ENVIRONMENT).view()).subscribe(_noting(kinds[_VIEW]))
            # Left to the process's end, like the thread, which nothing wakes.
            client = redis.Redis.from_url(url)
            subscription: Any = client.pubsub()  # type: ignore[no-untyped-call]
            subscription.subscribe(BY_HAND)
            subscription.get_message(timeout=10)  # the confirmation
            threading.Thread(
                target=_receive_in_a_thread, args=(client, subscription, kinds[_HAND], reply), daemon=True
            ).start()
        pipe.send("ready")
        while _answer(pipe, kinds):
            pass


def _receive_in_a_thread(client: redis.Redis, subscription: Any, notes: Notes, reply: bool) -> None:
    for message in subscription.listen():
        seen_at = time.monotonic()
        number = _number_of(message)
        if number is not None:
            if reply:
                client.publish(REPLIES, number)
            notes.append((number, seen_at))


def _follow_on_a_loop(pipe: Connection, url: str, count: int, reply: bool) -> None:
    asyncio.run(_follow(pipe, url, count, reply))


async def _follow(pipe: Connection, url: str, count: int, reply: bool) -> None:
    kinds: tuple[Notes, Notes] = ([], [])
    async with contextlib.AsyncExitStack() as stack:
        tasks = []
        for _ in range(count):
            store = await stack.enter_async_context(AsyncSessionStore.from_url(url))
            view = await stack.enter_async_context(store.environment(PROJECT, ENVIRONMENT).view())
            view.subscribe(_noting(kinds[_VIEW]))
            client = await stack.enter_async_context(redis.asyncio.Redis.from_url(url))
            subscription = await stack.enter_async_context(client.pubsub())
            await subscription.subscribe(BY_HAND)
            await subscription.get_message(timeout=10)  # the confirmation
            tasks.append(asyncio.create_task(_receive(client, subscription, kinds[_HAND], reply)))
        pipe.send("ready")
        while await asyncio.to_thread(_answer, pipe, kinds):
            pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(client: redis.asyncio.Redis, subscription: Any, notes: Notes, reply: bool) -> None:
    async for message in subscription.listen():
        seen_at = time.monotonic()
        number = _number_of(message)
        if number is not None:
            if reply:
                await client.publish(REPLIES, number)
            notes.append((number, seen_at))
