"""A TCP relay to a Redis. It tells subscriptions from calls, and can switch to another server.

Unlike `tests.support.relay`, it tells two kinds of connections apart: one that sent SUBSCRIBE is a *link*, any other
carries *calls*. A test can hold each kind. Held bytes arrive later, when the test releases them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

__all__ = ["Direction", "SortingRelay", "Traffic"]

Traffic = Literal["link", "calls"]
#: up: from the client to Redis; down: back
Direction = Literal["up", "down"]

_BOTH: tuple[Direction, Direction] = ("up", "down")
_ALL: tuple[Traffic, Traffic] = ("link", "calls")

#: Seconds that an order to the relay's thread may take.
_PATIENCE_S = 10.0


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.traffic: Traffic = "calls"
        self._writers = (client, server)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


class SortingRelay:
    """Listens on a free port after `start`, in its own thread, and connects each client to `target_port`."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._held: set[tuple[Traffic, Direction]] = set()
        self._delay_s = 0.0
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # Orders of a test

    def start(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_PATIENCE_S)
        return self

    def hold(self, *traffic: Traffic, directions: tuple[Direction, ...] = _BOTH) -> None:
        """Hold bytes and ends of connections, of the named traffic or of all."""
        self._order(lambda: self._held.update((one, way) for one in traffic or _ALL for way in directions))

    def release(self, *traffic: Traffic, directions: tuple[Direction, ...] = _BOTH) -> None:
        """Deliver the held bytes, and pass everything on again."""

        def release() -> None:
            self._held.difference_update((one, way) for one in traffic or _ALL for way in directions)
            self._changed.set()

        self._order(release)

    def delay_messages(self, seconds: float) -> None:
        """Delay Redis's messages on links by these seconds; 0: none."""
        self._order(lambda: setattr(self, "_delay_s", seconds))

    def cut(self) -> None:
        """Reset the open connections."""

        def cut() -> None:
            for connection in self._connections:
                connection.abort()
            self._changed.set()

        self._order(cut)

    def retarget(self, port: int) -> None:
        """Connect new clients to another server. Open connections stay with the old one."""
        self._order(lambda: setattr(self, "_target_port", port))

    def close(self) -> None:
        """Cut every connection and end the thread; closing twice is allowed."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(_PATIENCE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE_S)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # The relay's thread

    def _order(self, action: Callable[[], object]) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(_PATIENCE_S)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except BaseException as exc:
            writer.transport.abort()
            if isinstance(exc, OSError):
                return  # to the client, the server is down
            raise
        connection = _Connection(writer, to_server)
        self._connections.add(connection)
        pumps = (
            asyncio.ensure_future(self._pump(connection, "up", reader, to_server)),
            asyncio.ensure_future(self._pump(connection, "down", from_server, writer)),
        )
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            connection.close()
            self._connections.discard(connection)

    async def _pump(
        self,
        connection: _Connection,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(65536)
                if direction == "up" and b"SUBSCRIBE" in data:
                    connection.traffic = "link"
                while (connection.traffic, direction) in self._held and not writer.is_closing():
                    self._changed.clear()
                    await self._changed.wait()
                if not data:
                    return
                if self._delay_s and (connection.traffic, direction) == ("link", "down"):
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
