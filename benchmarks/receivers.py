"""Views as Redis sees them, hundreds in one process: each has two connections and sends what a view sends.

A view of this library would cost its process more than it costs Redis, and a thousand of them would need a machine of
their own. Beside each there is a receiver by hand, which answers each message with a script of five commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import resource
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self, cast

from msgspec import Struct, json

from sessionstore.protocol import calls
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.protocol.replies import LeaseReply
from sessionstore.protocol.scripts import compose, load_script
from sessionstore.transport.resp import evalsha, evaluate, pack

from .dataset import environment_keys
from .peers import Peer

__all__ = ["BY_HAND", "DONE", "Receivers", "answer_script"]

#: The channels of what is done by hand: messages, and word that every receiver has answered one.
BY_HAND, DONE = "by-hand", "by-hand:done"

_PROCESSES = 4

# KEYS[1] head  [2] leases  [3] answers  [4] channel  ARGV[1] receiver  [2] number of the message
_ANSWER = """
local now = redis.call('TIME')
local head = redis.call('HGET', KEYS[1], 'rev')
local lease = redis.call('ZSCORE', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
local lowest = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
if lowest[2] == ARGV[2] then
  redis.call('SPUBLISH', KEYS[4], ARGV[2])
end
return 'OK'
"""
answer_script = compose("answer", _ANSWER)
_HAND_KEYS = ("by-hand:head", "by-hand:leases", "by-hand:answers", DONE)


class Receivers:
    """`count` views and as many receivers by hand, in a few processes. While one kind works, the other one waits."""

    def __init__(self, port: int, count: int, lease_ms: int, *, processes: int = _PROCESSES) -> None:
        processes = min(count, processes)
        firsts = [count * number // processes for number in range(processes + 1)]
        self._stack = contextlib.ExitStack()
        self._peers = [
            self._stack.enter_context(Peer(_receive, port, range(*pair), lease_ms))
            for pair in itertools.pairwise(firsts)
        ]
        for peer in self._peers:
            peer.receive()

    def renew(self) -> None:
        """Have the views renew their leases, until the end."""
        for peer in self._peers:
            peer.ask("renew")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


class _Position(Struct):
    rev: int
    id: str


def _ignore(line: bytes) -> None:
    pass


class _Link(asyncio.Protocol):
    """One connection. Each reply has as many lines; the last one holds the answer, or the message."""

    def __init__(self, lines: int = 2) -> None:
        self._lines = lines
        self._buffer = b""
        self.heard: Callable[[bytes], None] = _ignore

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, command: bytes) -> None:
        self._transport.write(command)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"-"):
            raise RuntimeError(data.decode())
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        whole = len(lines) - len(lines) % self._lines
        for end in range(self._lines, whole + 1, self._lines):
            self.heard(lines[end - 1])
        if whole < len(lines):
            self._buffer = b"\r\n".join([*lines[whole:], self._buffer])

    async def ask(self, command: bytes, lines: int = 2) -> bytes:
        """Send a command and receive its answer, of so many lines."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        usual, self._lines, self.heard = self._lines, lines, answer.set_result
        self.send(command)
        try:
            return await answer
        finally:
            self._lines, self.heard = usual, _ignore


async def _connect(port: int) -> _Link:
    _, link = await asyncio.get_running_loop().create_connection(_Link, "127.0.0.1", port)
    return link


async def _subscribe(port: int, channel: str, heard: Callable[[bytes], None]) -> None:
    link = await _connect(port)
    await link.ask(pack(("SSUBSCRIBE", channel)), lines=6)
    link._lines, link.heard = 7, heard


class _View:
    """A view: it acknowledges each change, and renews its lease if asked to."""

    def __init__(self, keyspace: EnvironmentKeyspace, number: int, lease_ms: int) -> None:
        self._keyspace = keyspace
        self.number = number
        self._id = f"{random.Random(number).getrandbits(64):016x}"
        self._lease_ms = lease_ms
        self._position = _Position(0, "")
        self._epoch = ""

    async def open(self, port: int) -> None:
        self._commands = await _connect(port)
        await _subscribe(port, self._keyspace.changes, self._changed)
        join = calls.join(self._keyspace, self._id, self._lease_ms, "{}", 0, "")
        reply = json.decode(await self._commands.ask(pack(evaluate(join))), type=LeaseReply)
        if reply.status != "ok":
            raise RuntimeError(f"A view could not join: {reply.status}.")
        self._epoch, self._position = reply.epoch, _Position(reply.rev, reply.id)

    def _changed(self, payload: bytes) -> None:
        self._position = position = json.decode(payload, type=_Position)
        call = calls.ack(self._keyspace, self._id, position.rev, position.id, self._epoch)
        self._commands.send(pack(evalsha(call)))

    def renew(self) -> None:
        position = self._position
        call = calls.renew(self._keyspace, self._id, self._lease_ms, position.rev, position.id, self._epoch)
        self._commands.send(pack(evalsha(call)))


class _Hand:
    """A receiver by hand."""

    def __init__(self, number: int) -> None:
        self._id = f"{random.Random(number).getrandbits(64):016x}"

    async def open(self, port: int) -> None:
        self._commands = await _connect(port)
        await _subscribe(port, BY_HAND, self._received)
        await self._commands.ask(self._answer("EVAL", answer_script.text, "0"))

    def _received(self, payload: bytes) -> None:
        number = payload.split(b" ", 1)[0].decode()
        self._commands.send(self._answer("EVALSHA", answer_script.sha, number))

    def _answer(self, command: str, script: str, number: str) -> bytes:
        return pack((command, script, len(_HAND_KEYS), *_HAND_KEYS, self._id, number))


def _receive(pipe: Connection, port: int, numbers: Iterable[int], lease_ms: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # four connections for each number
    asyncio.run(_run(pipe, port, numbers, lease_ms))


async def _run(pipe: Connection, port: int, numbers: Iterable[int], lease_ms: int) -> None:
    keyspace = environment_keys()
    link = await _connect(port)
    for script in map(load_script, ("ack", "renew")):
        await link.ask(pack(("SCRIPT", "LOAD", script.text)))
    views = [_View(keyspace, number, lease_ms) for number in numbers]
    for view in views:
        await view.open(port)
        await _Hand(view.number).open(port)
    pipe.send("ready")
    tasks = []
    while (question := await asyncio.to_thread(pipe.recv)) is not None:
        assert question == "renew"
        tasks.append(asyncio.create_task(_renew(views, lease_ms / 3000)))
        pipe.send("renewing")


async def _renew(views: list[_View], interval_s: float) -> None:
    """Renew each lease each third of it, spread evenly."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in range(10**9):
        await asyncio.sleep(begun + number * interval_s / len(views) - loop.time())
        views[number % len(views)].renew()
