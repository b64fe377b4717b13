"""The driver for asyncio: when the calls of a sync leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessionstore import AsyncSessionStore
from sessionstore.protocol.calls import SNAPSHOT_BATCH
from sessionstore.protocol.scripts import load_script
from sessionstore.transport import redis_internals

from ...support.redis_server import RedisServer

SNAPSHOT_SHA = load_script("snapshot").sha.encode()


async def test_the_next_page_leaves_before_an_answer_that_is_here_is_applied(
    shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        # Given an environment of several pages
        staging = store.environment("checkout", "staging")
        await asyncio.gather(*(staging.put(f"ci-{number}", wait=False) for number in range(5 * SNAPSHOT_BATCH)))
        driver: Any = store._runner.driver
        write, finish, answered = redis_internals.write, driver._connections.finish, driver.subscriptions.answered
        asked: set[Any] = set()
        sent = 0
        unsent: list[int] = []

        def watched_write(connection: Any, commands: list[bytes]) -> None:
            nonlocal sent
            sent += sum(SNAPSHOT_SHA in command for command in commands)
            write(connection, commands)

        async def finish_all(batch: Any) -> Any:
            # Redis answers two pages that it has received together at the same time.
            if not batch.answers[0].done():
                await asyncio.wait([batch.answers[0], *(begun.answers[0] for _, begun in driver._begun)])
            return await finish(batch)

        def watched_answered(request: Any, reply: Any, now: float) -> None:
            asked.update(other for _, begun in driver._begun for other in begun.calls)
            asked.add(request.call)
            unsent.append(sum(call.script.sha.encode() == SNAPSHOT_SHA for call in asked) - sent)
            answered(request, reply, now)

        monkeypatch.setattr(redis_internals, "write", watched_write)
        driver._connections.finish = finish_all
        driver.subscriptions.answered = watched_answered

        # When a view opens, then no page waits to be sent while another is applied
        async with staging.view() as view:
            assert view.stats.sessions == 5 * SNAPSHOT_BATCH
        assert len(unsent) > 5
        assert set(unsent) == {0}
