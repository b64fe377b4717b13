"""Connections that are lent to writes which wait for replicas."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from sessionstore import StoreClosedError
from sessionstore.aio.waiting import WaitingConnections


class Connection:
    """An open connection, which notes that it was closed."""

    is_connected = True

    async def can_read(self) -> bool:
        return False

    async def disconnect(self, *, nowait: bool) -> None:
        self.is_connected = False


class Link:
    """Makes connections."""

    def __init__(self) -> None:
        self.made: list[Connection] = []

    async def open(self, within_s: float) -> Connection:
        self.made.append(Connection())
        return self.made[-1]

    @property
    def still_open(self) -> int:
        return sum(connection.is_connected for connection in self.made)


def make(count: int = 3) -> tuple[WaitingConnections, Link]:
    link: Any = Link()
    return WaitingConnections(link, count), link


async def use_together(connections: WaitingConnections, count: int) -> None:
    """Lend so many at the same time, and take them back."""
    all_lent = asyncio.Barrier(count)

    async def use() -> None:
        async with connections.lend(10.0):
            await all_lent.wait()

    await asyncio.gather(*(use() for _ in range(count)))


async def test_a_connection_is_lent_again() -> None:
    connections, link = make()
    for _ in range(3):
        await use_together(connections, 2)
    assert len(link.made) == link.still_open == 2


async def test_after_an_error_no_idle_connection_is_lent() -> None:
    """Given idle connections, when the server of one turns out to be a replica, then the others are closed, too."""
    connections, link = make()
    await use_together(connections, 3)

    with pytest.raises(redis.exceptions.ReadOnlyError):
        async with connections.lend(10.0):
            raise redis.exceptions.ReadOnlyError

    assert link.still_open == 0
    await use_together(connections, 3)
    assert link.still_open == 3


async def test_connections_are_bounded() -> None:
    connections, link = make(1)
    async with connections.lend(10.0):
        with pytest.raises(redis.exceptions.MaxConnectionsError):
            async with connections.lend(0.01):
                pytest.fail("none is free")
    assert len(link.made) == 1


async def test_a_connection_that_redis_has_closed_is_made_anew() -> None:
    connections, link = make()
    await use_together(connections, 1)
    link.made[0].is_connected = False

    await use_together(connections, 1)

    assert len(link.made) == 2


async def test_closing_ends_what_is_lent() -> None:
    connections, link = make()
    await use_together(connections, 2)

    async def use_without_end() -> None:
        async with connections.lend(10.0):
            await connections.aclose()
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await use_without_end()
    assert link.still_open == 0
    with pytest.raises(StoreClosedError):
        await use_together(connections, 1)


async def test_what_comes_back_after_closing_is_closed() -> None:
    connections, link = make()
    async with connections.lend(10.0):
        await connections.aclose()
    assert link.still_open == 0
