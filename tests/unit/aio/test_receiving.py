"""Receiving what Redis publishes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from sessionstore.aio.receiving import receive


class Connection:
    """Has no transport, as that of fakeredis, and loses a cancellation, as `asyncio.wait_for` of Python 3.11 may do."""

    def __init__(self) -> None:
        self.is_reading = asyncio.Event()

    async def read_response(self, **kwargs: Any) -> list[bytes]:
        self.is_reading.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return [b"pong", b""]


async def test_a_lost_cancellation_ends_it_too() -> None:
    connection, replies = Connection(), list[Any]()
    receiving = receive(connection, replies.append)
    await connection.is_reading.wait()

    receiving.cancel()

    done, _ = await asyncio.wait([receiving], timeout=5)
    assert done == {receiving}
    assert replies == [[[b"pong", b""]]]
