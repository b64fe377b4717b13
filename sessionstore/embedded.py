"""A store in this process's memory, to try the library and for tests: fakeredis instead of Redis.

State is lost when the process ends. Everything but speed and durability is as on Redis; the scripts are the same.

fakeredis is no security boundary: its Lua reaches Python, and RESTORE unpickles. So other processes connect by `listen`
only, which checks each command against a list. It runs this library's own text of a script, and no text of a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from .errors import SessionStoreError
from .protocol.scripts import load_script, script_names

if TYPE_CHECKING:
    import redis
    import redis.asyncio

#: What a client may send: a command, or a command and its first argument.
_COMMANDS = frozenset(
    {
        b"CLIENT SETINFO",
        b"CLIENT SETNAME",
        b"HELLO",
        b"INFO",
        b"PING",
        b"SCAN",
        b"SELECT",
        b"SSUBSCRIBE",
        b"SUNSUBSCRIBE",
    }
)
_RUNS_SCRIPT = frozenset({b"EVAL", b"EVALSHA", b"EVAL_RO", b"EVALSHA_RO"})
#: The text of each script, by itself and by its SHA-1.
_SCRIPTS = {
    name.encode(): script.text.encode()
    for script in map(load_script, script_names())
    for name in (script.text, script.sha)
}
_REFUSAL = b"-NOPERM The embedded store takes only what sessionstore sends, and only its scripts.\r\n"

#: The first words of replies that RESP3 marks as pushed.
_PUSHES = frozenset({b"smessage", b"ssubscribe", b"sunsubscribe"})
#: The most parts of one command, and bytes of one part. Applying the largest catalog to very many sessions needs less.
_MAX_PARTS = 1_000_000
_MAX_PART_BYTES = 16 * 1024 * 1024
#: How an error reply begins.
_ERROR_CODE = re.compile(r"[A-Z]+ ")


class EmbeddedServer:
    """The counterpart of a Redis server: stores made on it share its state.

    Raises
    ------
    SessionStoreError
        fakeredis is not installed.
    """

    def __init__(self) -> None:
        try:
            from fakeredis import FakeServer
        except ImportError as exc:
            raise SessionStoreError(
                "The embedded store needs fakeredis; install sessionstore[embedded], or give the URL of a Redis."
            ) from exc
        self._server = FakeServer()
        self._listener: _Listener | None = None

    def client(self) -> redis.Redis:
        """A client for threads, in this process."""
        import fakeredis

        return fakeredis.FakeRedis(server=self._server)

    def async_client(self) -> redis.asyncio.Redis:
        """A client for asyncio, in this process."""
        import fakeredis

        return fakeredis.FakeAsyncRedis(server=self._server)

    def listen(self) -> str:
        """Let stores in other processes of this user connect; returns the URL. Calling it again returns the same.

        It listens on a Unix socket of mode 0600, in a new folder of mode 0700. It accepts only the commands that this
        library sends, so redis-cli can't look into the store.

        Raises
        ------
        SessionStoreError
            The folder for temporary files has too long a path for a socket, or can't be written.
        """
        if self._listener is None:
            self._listener = _Listener(self._server)
        return self._listener.url

    def close(self) -> None:
        """Stop listening and drop the connections."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Listener:
    """The Unix socket, and the thread that serves it."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._clients: set[asyncio.Task[None]] = set()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="sessionstore-"))  # mode 0700
            path = self._folder / "redis.sock"
            try:
                self._socket.bind(str(path))
                path.chmod(0o600)
                self._socket.listen()
            except BaseException:
                shutil.rmtree(self._folder)
                raise
        except OSError as exc:
            self._socket.close()
            raise SessionStoreError(
                f"The embedded store can't listen: {exc}. Set TMPDIR to a short path that can be written."
            ) from exc
        self.url = f"unix://{quote(str(path))}"
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="embedded-redis", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        shutil.rmtree(self._folder)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._serve_client, sock=self._socket)
        await self._closing.wait()
        server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from fakeredis import FakeAsyncRedis

        task = asyncio.current_task()
        assert task is not None, "asyncio makes one for each connection"
        self._clients.add(task)
        pool: Any = FakeAsyncRedis(server=self._server, protocol=2).connection_pool
        connection = pool.make_connection()
        client = _Client(connection, reader, writer)
        try:
            await client.serve()
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError, ValueError):
            pass  # closed, by this side or the other; or what came is not RESP
        finally:
            self._clients.discard(task)
            writer.close()
            await connection.disconnect()


class _Client:
    """One connection of another process, and one of fakeredis behind it."""

    def __init__(self, connection: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection = connection
        self._reader = reader
        self._writer = writer
        self._protocol = 2
        #: replies leave in order
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Run commands until the connection ends, and send what is published meanwhile."""
        await self._connection.connect()
        pushing = asyncio.create_task(self._push())
        try:
            while True:
                command = _checked(await self._read_command())
                if command is not None:
                    await self._connection.send_command(*command)
                await self._send(b"" if command is not None else _REFUSAL)
        finally:
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)

    async def _read_command(self) -> list[bytes]:
        return [await self._read_part() for _ in range(await self._read_number(b"*", _MAX_PARTS))]

    async def _read_part(self) -> bytes:
        part = await self._reader.readexactly(await self._read_number(b"$", _MAX_PART_BYTES) + 2)
        return part[:-2]

    async def _read_number(self, kind: bytes, most: int) -> int:
        line = await self._reader.readuntil(b"\r\n")
        number = int(line[1:])
        if line[:1] != kind or not 0 <= number <= most:
            raise ValueError("not a command")
        return number

    async def _push(self) -> None:
        """Send published messages. Earlier replies have left, except those of a command that runs now."""
        while True:
            await self._connection.can_read(timeout=None)
            await self._send()

    async def _send(self, last: bytes = b"") -> None:
        async with self._sending:
            while await self._connection.can_read(timeout=0):
                self._writer.write(await self._next_reply())
            self._writer.write(last)
            await self._writer.drain()

    async def _next_reply(self) -> bytes:
        from redis.exceptions import RedisError

        try:
            reply = await self._connection.read_response()
        except RedisError as exc:
            return _encode_error(str(exc))
        if isinstance(reply, dict) and reply.get(b"proto") in (2, 3):
            self._protocol = reply[b"proto"]
        return _encode(reply, self._protocol, first=True)


def _checked(command: list[bytes]) -> list[bytes] | None:
    """Return the command to run in place of a client's command; None refuses it."""
    name = command[0].upper() if command else b""
    if name in _RUNS_SCRIPT:
        text = _SCRIPTS.get(command[1]) if len(command) > 1 else None
        return None if text is None else [b"EVAL", text, *command[2:]]
    if name == b"HELLO" and len(command) > 2:
        return None  # it names a user
    return command if name in _COMMANDS or b" ".join(command[:2]).upper() in _COMMANDS else None


def _encode(value: Any, protocol: int, *, first: bool = False) -> bytes:
    if value is None:
        return b"_\r\n" if protocol == 3 else b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, dict):
        parts = [part for pair in value.items() for part in pair]
        return b"%%%d\r\n" % len(value) + b"".join(_encode(part, protocol) for part in parts)
    if isinstance(value, list):
        pushed = first and protocol == 3 and bool(value) and value[0] in _PUSHES
        return (b">%d\r\n" if pushed else b"*%d\r\n") % len(value) + b"".join(_encode(part, protocol) for part in value)
    data = value.encode() if isinstance(value, str) else bytes(value)
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _encode_error(text: str) -> bytes:
    """Encode an error. redis-py has cut some codes off; ERR will do, since no client looks for those."""
    text = text if _ERROR_CODE.match(text) else f"ERR {text}"
    return f"-{' '.join(text.split())}\r\n".encode()
