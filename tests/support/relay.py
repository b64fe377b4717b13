"""A TCP relay between a client and a server. Tests can make each direction misbehave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Literal, Self

__all__ = ["Direction", "Mode", "Relay"]

#: What happens to arriving bytes. They are passed on; they wait for another mode, as on a silent link; or they are
#: dropped. Or both sides of the connection are closed instead, each time or only the first time; or half of the bytes
#: are passed on before, only the first time.
Mode = Literal["pass", "hold", "drop", "close", "close once", "cut once"]

Direction = Literal["to_server", "to_client"]


class Relay:
    """Listens on a free port of 127.0.0.1 and passes connections on to `target_port`, in a thread of its own.

    ::

        with Relay(server.port) as relay:
            store = SessionStore.from_url(relay.url)
            relay.set(to_client="close")      # the next answer is lost
            relay.wait_for("to_client")       # … now
    """

    def __init__(self, target_port: int, *, delay_s: float = 0.0) -> None:
        self.target_port = target_port
        #: how long the server's bytes are on their way
        self._delay_s = delay_s
        self.port = 0
        self._modes: dict[Direction, Mode] = {"to_server": "pass", "to_client": "pass"}
        self._arrived = {direction: threading.Event() for direction in self._modes}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._links: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._links)

    def set(self, *, to_server: Mode = "pass", to_client: Mode = "pass") -> None:
        """Change the mode of each direction, for held bytes too."""

        async def change() -> None:
            self._modes = {"to_server": to_server, "to_client": to_client}
            for arrived in self._arrived.values():
                arrived.clear()
            self._changed.set()
            self._changed = asyncio.Event()

        self._run(change())

    def wait_for(self, direction: Direction, timeout_s: float = 10.0) -> None:
        """Return when bytes have arrived in a mode other than pass."""
        assert self._arrived[direction].wait(timeout_s), f"nothing came {direction}"

    def disconnect(self) -> None:
        """Close every connection; new ones are accepted."""

        async def close() -> None:
            links = list(self._links)
            for link in links:
                link.cancel()
            await asyncio.gather(*links, return_exceptions=True)

        self._run(close())

    def refuse(self) -> None:
        """Close every connection and refuse new ones, until `accept`."""

        async def stop() -> None:
            assert self._server is not None
            self._server.close()

        self._run(stop())
        self.disconnect()

    def accept(self) -> None:
        """Accept connections, on the same port each time."""

        async def listen() -> None:
            self._server = await asyncio.start_server(self._on_connect, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

        self._run(listen())

    def close(self) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _on_connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = self._loop.create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        # A task that is cancelled before it begins closes nothing.
        link.add_done_callback(lambda _: writer.transport.abort())

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            writers.append(server_writer)
            pumps = [
                asyncio.ensure_future(self._pump("to_server", reader, server_writer)),
                asyncio.ensure_future(self._pump("to_client", server_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the server is down, so close the client's connection, as a server would
        finally:
            for open_writer in writers:
                open_writer.transport.abort()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on until either side is closed."""
        while data := await reader.read(65536):
            if self._delay_s and direction == "to_client":
                await asyncio.sleep(self._delay_s)
            if self._modes[direction] != "pass":
                self._arrived[direction].set()
            while self._modes[direction] == "hold":
                await self._changed.wait()
            mode = self._modes[direction]
            if mode in ("close once", "cut once"):
                self._modes[direction] = "pass"
            if mode == "cut once":
                writer.write(data[: len(data) // 2])
                writer.close()
                await writer.wait_closed()
                return
            if mode in ("close", "close once"):
                return
            if mode == "pass":
                writer.write(data)
                await writer.drain()
