"""How long does a view take to open, and how long does it block Redis? Beside a pipelined HGETALL of the same sessions.

In turns, a view opens, until it is live and holds a lease, and the same sessions are read by hand: by redis-py
pipelines of HGETALL, a thousand keys each, over a new connection. The reader by hand knows all keys, keeps the raw
answers, and has no proof that they belong together.

Meanwhile another process sends one PING after the other. The longest PING is the longest time in which Redis did not
serve others, plus the machine's noise. The noise differs from round to round, and shows in the PINGs while nothing is
read. The blocking is the same in each round. So the quietest round counts. Redis's slow log tells the longest command.

tracemalloc measures a view's memory in a process of its own: what remains, and the peak while it opens.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import redis
from msgspec import Struct

from sessionstore import AsyncSessionStore, SessionStore
from tests.support.redis_server import RedisServer

from .dataset import ENVIRONMENT, PROJECT, environment_keys, load_sessions, session_key
from .peers import Peer
from .report import Bar, Report, arguments_parser, conclude, describe_machine, median_ratio

#: Bars: of the pipelined HGETALL, also from `MANY` sessions on, and the longest time that Redis is blocked, in ms.
MAX_OF_HGETALL, MAX_OF_HGETALL_OF_MANY, MAX_BLOCKED_MS = 2.0, 0.7, 5.0
MANY = 100_000

THREADS, ASYNCIO, BY_HAND, NOTHING = "view, threads", "view, asyncio", "pipelined HGETALL", "nothing"

#: Keys of one pipeline.
PIPELINE = 1000
#: Seconds between two PINGs.
PING_PAUSE_S = 0.0002
#: Seconds of PINGs while nothing is read, at least and at most.
NOTHING_S, MAX_NOTHING_S = 0.1, 3.0
#: Commands that take less stay out of the slow log, in microseconds.
SLOW_US = 100
#: Seconds that opening may take.
OPEN_TIMEOUT_S = 180.0
#: Sessions of all rounds of one size, about; and the most of which the memory is measured: tracemalloc is slow.
SESSIONS_OF_A_SIZE, MAX_WEIGHED = 1_000_000, 100_000


class Figures(Struct):
    """The measurements with one number of sessions: by kind of run, a value for each round."""

    sessions: int
    seconds: dict[str, list[float]]
    #: the longest PING, and the longest command in the slow log
    ping_ms: dict[str, list[float]]
    command_ms: dict[str, list[float]]
    #: bytes per session: what a view holds, and the peak while it opens
    held: float | None
    peak: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_parser(__doc__, rounds=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000], help="sessions")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.rounds = [100], 2
    found: list[Figures] = []
    with RedisServer(slowlog_log_slower_than=str(SLOW_US)) as server, server.client() as client:
        facts = describe_machine(client)
        for size in options.sizes:
            client.flushall()
            load_sessions(client, environment_keys(), size)
            rounds = max(1, min(options.rounds, SESSIONS_OF_A_SIZE // size))
            found.append(measure(server, client, size, rounds))
    return conclude("sync", facts, summarise(found), options)


def measure(server: RedisServer, client: redis.Redis, size: int, rounds: int) -> Figures:
    names = [environment_keys().session(session_key(number)) for number in range(size)]
    runs: dict[str, Callable[[], float]] = {
        THREADS: lambda: open_view(server.url, size),
        ASYNCIO: lambda: asyncio.run(open_async_view(server.url, size)),
        BY_HAND: lambda: read_by_hand(server.url, names),
        NOTHING: lambda: do_nothing(seconds[BY_HAND]),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    ping_ms: dict[str, list[float]] = {kind: [] for kind in runs}
    command_ms: dict[str, list[float]] = {kind: [] for kind in runs}
    with Peer(send_pings, server.port) as pinging:
        pinging.receive()
        for _ in range(rounds):
            for kind, run in runs.items():
                gc.collect()
                client.slowlog_reset()
                pinging.ask("begin")
                seconds[kind].append(run())
                ping_ms[kind].append(pinging.ask("longest") * 1000)
                slow: Any = client.slowlog_get()
                command_ms[kind].append(max((entry["duration"] for entry in slow), default=0) / 1000)
    if size > MAX_WEIGHED:
        return Figures(size, seconds, ping_ms, command_ms, None, None)
    with Peer(weigh_view, server.url) as weighing:
        held, peak = weighing.receive()
    return Figures(size, seconds, ping_ms, command_ms, held / size, peak / size)


def open_view(url: str, size: int) -> float:
    """Seconds until a view is fresh."""
    with SessionStore.from_url(url) as store:
        started = time.perf_counter()
        with store.environment(PROJECT, ENVIRONMENT).view(timeout_s=OPEN_TIMEOUT_S) as view:
            taken = time.perf_counter() - started
            assert view.fresh, "opening returns when the view is fresh"
            assert view.stats.sessions == size, "it holds all loaded sessions"
    return taken


async def open_async_view(url: str, size: int) -> float:
    """Seconds until a view on an event loop is fresh."""
    async with AsyncSessionStore.from_url(url) as store:
        started = time.perf_counter()
        async with store.environment(PROJECT, ENVIRONMENT).view(timeout_s=OPEN_TIMEOUT_S) as view:
            taken = time.perf_counter() - started
            assert view.fresh, "opening returns when the view is fresh"
            assert view.stats.sessions == size, "it holds all loaded sessions"
    return taken


def read_by_hand(url: str, names: list[str]) -> float:
    """Seconds until all hashes have been read."""
    with redis.Redis.from_url(url) as client:
        started = time.perf_counter()
        found: list[Any] = []
        for start in range(0, len(names), PIPELINE):
            with client.pipeline(transaction=False) as pipeline:
                for name in names[start : start + PIPELINE]:
                    pipeline.hgetall(name)
                found += pipeline.execute()
        taken = time.perf_counter() - started
    assert len(found) == len(names), "every key has an answer"
    assert all(found), "every session is there"
    return taken


def do_nothing(as_long_as: list[float]) -> float:
    """Wait for the median of some times."""
    taken = min(max(NOTHING_S, statistics.median(as_long_as)), MAX_NOTHING_S)
    time.sleep(taken)
    return taken


def send_pings(pipe: Connection, port: int) -> None:
    """Send PINGs until None is received. Answer anything else with the longest one since. Runs as a `Peer`."""
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        longest = 0.0
        pipe.send("ready")
        while True:
            started = time.perf_counter()
            link.sendall(b"PING\r\n")
            if link.recv(64) != b"+PONG\r\n":
                raise RuntimeError("Redis answered a PING with something else.")
            longest = max(longest, time.perf_counter() - started)
            if pipe.poll(PING_PAUSE_S):
                if pipe.recv() is None:
                    return
                pipe.send(longest)
                longest = 0.0


def weigh_view(pipe: Connection, url: str) -> None:
    """Send the bytes that a view holds, and the peak while it opens. Runs as a `Peer`."""
    with SessionStore.from_url(url) as store:
        store.ping()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        with store.environment(PROJECT, ENVIRONMENT).view(timeout_s=OPEN_TIMEOUT_S):
            gc.collect()
            held, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            pipe.send((held - before, peak - before))
            pipe.recv()


def summarise(found: list[Figures]) -> Report:
    rows: list[list[str]] = []
    bars: list[Bar] = []
    for figures in found:
        size = f"{figures.sessions:,}"
        for kind in (THREADS, ASYNCIO, BY_HAND, NOTHING):
            is_view = kind in (THREADS, ASYNCIO)
            ratio = median_ratio(figures.seconds[kind], figures.seconds[BY_HAND])
            ping_ms = min(figures.ping_ms[kind])
            rows.append(
                [
                    f"{size}: {kind}",
                    f"{statistics.median(figures.seconds[kind]) * 1000:,.1f}" if kind != NOTHING else "",
                    f"{ratio:.2f}" if is_view else "",
                    f"{ping_ms:.2f}",
                    f"{statistics.median(figures.ping_ms[kind]):.2f}",
                    f"{statistics.median(figures.command_ms[kind]):.2f}",
                    f"{figures.held:,.0f}" if is_view and figures.held else "",
                    f"{figures.peak:,.0f}" if is_view and figures.peak else "",
                ]
            )
            if is_view:
                limit = MAX_OF_HGETALL_OF_MANY if figures.sessions >= MANY else MAX_OF_HGETALL
                bars.append(Bar(f"{size} sessions, {kind}: of the pipelined HGETALL", limit, ratio))
                # One round tells the machine's noise.
                blocked = MAX_BLOCKED_MS if len(figures.ping_ms[kind]) > 1 else None
                bars.append(Bar(f"{size} sessions, {kind}: longest PING", blocked, ping_ms, unit="ms"))
    columns = [
        "sessions",
        "ms",
        "ratio",
        "longest PING ms, quietest round",
        "median round",
        "longest command ms",
        "bytes per session",
        "peak",
    ]
    notes = ["The longest command is from Redis's slow log. The bytes are those of the threaded view."]
    off_page = [row[0] for row in rows if row[0].endswith(NOTHING) or row[0].startswith("10,000:")]
    return Report("Opening a view", columns, rows, bars, found, notes, off_page)


if __name__ == "__main__":
    sys.exit(main())
