"""Waits for the store end when their client disconnects, each by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from gateway.waits import Waits


@pytest.fixture(autouse=True)
def early_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.waits._WATCH_AFTER_S", 0.01)


class Client:
    """Sends a request, whose body has been read, and disconnects when the test says so."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.request = Request({"type": "http"}, self.messages.get)

    def disconnect(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_client_that_disconnects_ends_its_own_wait_only() -> None:
    waits, first, second = Waits(), Client(), Client()
    tasks = []
    for client in (first, second):
        tasks.append(asyncio.create_task(waits.while_connected(client.request, forever())))
        # The second one is younger when the timer of the first one runs out.
        await asyncio.sleep(0.005)

    second.disconnect()
    with pytest.raises(ClientDisconnect):
        await tasks[1]
    assert not tasks[0].done()

    first.disconnect()
    with pytest.raises(ClientDisconnect):
        await tasks[0]


async def test_a_wait_that_ends_in_time_returns_its_result_and_the_next_one_is_watched() -> None:
    waits, client = Waits(), Client()

    assert await waits.while_connected(Client().request, asyncio.sleep(0, "done")) == "done"
    assert await waits.while_connected(Client().request, asyncio.sleep(0.05, "late")) == "late"
    client.disconnect()
    with pytest.raises(ClientDisconnect):
        await waits.while_connected(client.request, forever())


async def test_a_timeout_of_the_work_is_no_disconnected_client() -> None:
    async def fail() -> None:
        raise TimeoutError("of Redis")

    with pytest.raises(TimeoutError, match="of Redis"):
        await Waits().while_connected(Client().request, fail())


async def test_nothing_is_left_of_a_wait_that_has_ended() -> None:
    """A wait that ends cancels its watch, so a later message is not taken from its request."""
    waits, client = Waits(), Client()
    before = asyncio.all_tasks()

    await waits.while_connected(client.request, asyncio.sleep(0.05))
    await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
    client.disconnect()
    await asyncio.sleep(0)

    assert client.messages.qsize() == 1
