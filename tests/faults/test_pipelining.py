"""Many calls on one connection of an asyncio store, while Redis, the link or the callers fail.

Each call has a key of its own, and checks that its answer is about that key, and that it shows a state that the key can
be in: a write that changed nothing is never seen.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sessionstore import AsyncSessionStore, OutcomeUnknownError, Session, StoreUnavailableError

from ..support.redis_server import RedisServer
from ..support.relay import Direction, Mode, Relay

CALLERS = 64
DEADLINE_S = 0.4


class Caller:
    """Calls about one key, again and again."""

    def __init__(self, store: AsyncSessionStore, key: str) -> None:
        self._staging = store.environment("checkout", "staging")
        self.key = key
        self._numbers = itertools.count()
        self._rng = random.Random(key)
        #: the last label that the key was seen with, and those of writes whose outcome is unknown: they may run late
        self._label: str | None = None
        self._unknown: set[str] = set()
        #: how many calls were answered, and how many failed, by their error
        self.answered = 0
        self.failed: dict[type[Exception], int] = {}

    async def call(self) -> None:
        """Make one call; a failure is counted."""
        try:
            await (self._get() if self._rng.random() < 0.5 else self._put())
            self.answered += 1
        except StoreUnavailableError as exc:
            self.failed[type(exc)] = self.failed.get(type(exc), 0) + 1

    async def call_on(self) -> None:
        while True:
            await self.call()
            # After a failure that comes at once
            await asyncio.sleep(0)

    async def _get(self) -> None:
        session = await self._staging.get(self.key)
        assert session is not None
        self._see(session)

    async def _put(self) -> None:
        label = f"{self.key} {next(self._numbers)}"
        # Unless an answer says otherwise: a cancellation tells nothing
        self._unknown.add(label)
        try:
            session = await self._staging.put(self.key, label=label, wait=False)
        except OutcomeUnknownError:
            raise
        except StoreUnavailableError:
            self._unknown.discard(label)
            raise
        assert session.label == label
        self._unknown.discard(label)
        self._label = label
        self._see(session)

    def _see(self, session: Session) -> None:
        assert session.session_key == self.key, f"the answer to {self.key} is about {session.session_key}"
        allowed = {self._label, *self._unknown} if self._label is not None else {session.label}
        assert session.label in allowed, f"{self.key} is {session.label}, of {allowed}"
        self._label = session.label


@asynccontextmanager
async def callers(url: str, prefix: str, **options: Any) -> AsyncIterator[list[Caller]]:
    """Callers of one store, whose keys exist; in the end all are served again."""
    settings = {"prefix": prefix, "lease_s": 0.1, "deadline_s": DEADLINE_S, **options}
    async with AsyncSessionStore.from_url(url, **settings) as store:
        found = [Caller(store, f"ci-{number}") for number in range(CALLERS)]
        await asyncio.gather(*(caller._put() for caller in found))
        yield found
        await served(found)


async def served(callers: list[Caller]) -> None:
    """Return when each of them has been answered again."""
    answered = {caller: caller.answered for caller in callers}
    async with asyncio.timeout(20):
        while answered:
            await asyncio.gather(*(caller.call() for caller in callers))
            answered = {caller: count for caller, count in answered.items() if caller.answered == count}


async def while_they_call(callers: list[Caller], faults: Callable[[], Awaitable[None]]) -> None:
    tasks = [asyncio.create_task(caller.call_on()) for caller in callers]
    try:
        await faults()
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        assert isinstance(result, asyncio.CancelledError), result


async def turns(count: int) -> None:
    """Let the callers go on for some turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def failures(callers: list[Caller]) -> set[type[Exception]]:
    return {error for caller in callers for error in caller.failed}


async def test_redis_stops_and_goes_on(own_redis: RedisServer, prefix: str) -> None:
    async with callers(own_redis.url, prefix) as found:

        async def faults() -> None:
            for number in range(5):
                await turns(100 + number)
                own_redis.pause()
                try:
                    # At first the connection is there; then there is none.
                    await until_failed(found)
                    await until_failed(found)
                finally:
                    own_redis.resume()
                await served(found)

        await while_they_call(found, faults)
        assert failures(found) == {OutcomeUnknownError, StoreUnavailableError}


async def until_failed(callers: list[Caller]) -> None:
    """Return when each of them has failed once more."""
    before = {caller: sum(caller.failed.values()) for caller in callers}
    async with asyncio.timeout(20):
        while any(sum(caller.failed.values()) == count for caller, count in before.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_redis_closes_the_connection_again_and_again(shared_redis: RedisServer, prefix: str) -> None:
    async with callers(f"{shared_redis.url}?client_name={prefix}", prefix, deadline_s=10) as found:

        async def faults() -> None:
            for number in range(60):
                await turns(number % 20)
                await asyncio.to_thread(shared_redis.kill_clients, prefix)

        await while_they_call(found, faults)
        assert failures(found) <= {OutcomeUnknownError, StoreUnavailableError}
        assert failures(found)


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
@pytest.mark.parametrize("mode", ["cut once", "close once"])
async def test_the_link_breaks_in_the_middle(
    shared_redis: RedisServer, prefix: str, direction: Direction, mode: Mode
) -> None:
    with Relay(shared_redis.port) as relay:
        async with callers(relay.url, prefix, deadline_s=10) as found:

            async def faults() -> None:
                for number in range(60):
                    await turns(number % 20)
                    relay.set(**{direction: mode})
                    await asyncio.to_thread(relay.wait_for, direction)

            await while_they_call(found, faults)
            assert failures(found) == {OutcomeUnknownError, StoreUnavailableError}


async def test_redis_forgets_the_scripts_again_and_again(shared_redis: RedisServer, prefix: str) -> None:
    async with callers(shared_redis.url, prefix, deadline_s=20) as found:

        async def faults() -> None:
            with shared_redis.client() as behind:
                for number in range(60):
                    await turns(number % 20)
                    await asyncio.to_thread(behind.script_flush)

        await while_they_call(found, faults)
        assert failures(found) == set()


async def test_ten_thousand_cancellations(shared_redis: RedisServer, prefix: str) -> None:
    rng = random.Random(1)
    async with callers(shared_redis.url, prefix, deadline_s=20) as found:
        cancelled = 0
        while cancelled < 10_000:
            tasks = [asyncio.create_task(caller.call_on()) for caller in found]
            for task in rng.sample(tasks, len(tasks)):
                await turns(rng.randint(0, 3))
                task.cancel()
                if rng.random() < 0.3:
                    await asyncio.sleep(0)
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                assert isinstance(result, asyncio.CancelledError), result
            cancelled += len(results)
        assert failures(found) == set()
        assert sum(caller.answered for caller in found) > 1_000
