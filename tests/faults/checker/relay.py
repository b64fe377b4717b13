"""A TCP relay to one or several Redis servers. It tells subscriptions from calls, and can switch to another server.

Unlike `tests.support.relay`, it tells two kinds of connections apart: one that sent SUBSCRIBE is a *link*, any other
carries *calls*. A test can hold each kind. Held bytes arrive later, when the test releases them. A test can also sever
the connections to some servers, or from some clients, as a partition of the network does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Literal, Self

from ...support.redis_server import Startable

__all__ = ["Direction", "SortingRelay", "Traffic"]

Traffic = Literal["link", "calls"]
#: up: from the client to Redis; down: back
Direction = Literal["up", "down"]

_BOTH: tuple[Direction, Direction] = ("up", "down")
_ALL: tuple[Traffic, Traffic] = ("link", "calls")

#: Seconds that an order to the relay's thread may take.
_PATIENCE_S = 10.0


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, target: int) -> None:
        self.traffic: Traffic = "calls"
        #: the client's IP address, and the port of the server
        self.ends: tuple[str, int] = (client.get_extra_info("peername")[0], target)
        self._writers = (client, server)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


#: Says of a connection, by its client's IP address and its server's port, whether the network passes it on no more.
Severed = Callable[[str, int], bool]


class SortingRelay(Startable):
    """Listens after `start`, in its own thread, on a free port for each server, and connects each client to it."""

    def __init__(self, *targets: int) -> None:
        #: the relay's port for each server's port
        self.ports: dict[int, int] = {}
        self._first = list(targets)
        #: where the clients of a server are led instead
        self._led: dict[int, int] = {}
        self._is_severed: Severed = lambda _client, _server: False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._held: set[tuple[Traffic, Direction]] = set()
        self._delay_s = 0.0
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    @property
    def port(self) -> int:
        """The port for the first server."""
        return self.ports[self._first[0]]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # Orders of a test

    def start(self) -> Self:
        self._thread.start()
        for target in self._first:
            self.listen(target)
        return self

    def listen(self, target: int) -> int:
        """Listen for one more server; returns the relay's port for it."""
        asyncio.run_coroutine_threadsafe(self._listen(target), self._loop).result(_PATIENCE_S)
        return self.ports[target]

    def sever(self, is_severed: Severed) -> None:
        """Hold everything on the connections, also new ones, for which this is true, until `mend`."""
        self._order(lambda: setattr(self, "_is_severed", is_severed))

    def mend(self) -> None:
        """Sever nothing, and deliver what was held."""

        def mend() -> None:
            self._is_severed = lambda _client, _server: False
            self._changed.set()

        self._order(mend)

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
        """Connect new clients of the first server to another one. Open connections stay with the old one."""
        self._order(lambda: self._led.update({self._first[0]: port}))

    def close(self) -> None:
        """Cut every connection and end the thread; closing twice is allowed."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(_PATIENCE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE_S)
        self._loop.close()

    # The relay's thread

    def _order(self, action: Callable[[], object]) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(_PATIENCE_S)

    async def _listen(self, target: int) -> None:
        server = await asyncio.start_server(partial(self._accepted, target), "127.0.0.1", 0)
        self._servers.append(server)
        self.ports[target] = server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)

    def _accepted(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(target, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._led.get(target, target))
        except BaseException as exc:
            writer.transport.abort()
            if isinstance(exc, OSError):
                return  # to the client, the server is down
            raise
        connection = _Connection(writer, to_server, target)
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
                while not writer.is_closing() and (
                    (connection.traffic, direction) in self._held or self._is_severed(*connection.ends)
                ):
                    self._changed.clear()
                    await self._changed.wait()
                if not data:
                    return
                if self._delay_s and (connection.traffic, direction) == ("link", "down"):
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
