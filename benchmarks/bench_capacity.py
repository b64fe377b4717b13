"""How many shards do 10, 1,000 and 100,000 proxies need? Unit costs are measured, and multiplied.

The unit costs are CPU time and memory of a redis-server for one session, one call, one idle proxy, and one message to
a view with its acknowledgement. Each figure of the table is a product of the unit costs and of `LOADS`.

An idle proxy is an asyncio store with one view, as a proxy has it. Messages go to simulated views (`receivers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import redis
from msgspec import Struct

from sessionstore import AsyncSessionStore, Environment, SessionStore
from tests.support.redis_server import RedisServer

from .dataset import ENVIRONMENT, PROJECT, environment_keys, load_sessions, session_key
from .peers import Peer
from .receivers import Receivers
from .redis_cpu import seconds_of_redis, share_of_core
from .report import Bar, Report, arguments_parser, conclude, describe_machine

#: A lease that is not renewed while messages are measured, in ms.
LONG_LEASE_MS = 60_000
#: Sessions of one touch, at most.
TOUCHED = 200


class Load(Struct, frozen=True):
    """What runs: projects that are alike. All proxies of a project have a view of one environment."""

    projects: int
    #: of one project
    proxies: int
    #: of one project, in a second
    writes: int = 20
    #: of one project
    sessions: int = 1_000
    #: that one proxy looks up in a second
    looked_up: int = 10


LOADS = (Load(1, 10), Load(10, 100), Load(1_000, 100))

#: A shard is full at half a core, so that it keeps up after a failover. The default of Redis's `maxclients` is 10,000.
MOST_OF_CORE, MOST_CLIENTS = 0.5, 10_000


class Units(Struct, frozen=True):
    """What one thing costs Redis: microseconds of CPU time, and bytes."""

    write_us: float
    read_us: float
    #: a message to a view, and its acknowledgement
    message_us: float
    #: one second of an idle proxy: renewals and heartbeats
    proxy_us: float
    #: one session that a proxy has looked up
    touch_us: float
    session_bytes: float
    proxy_bytes: float
    #: what Redis sends for a message to a view
    message_bytes: float
    proxy_connections: float


class Need(Struct, frozen=True):
    """What a load needs of Redis."""

    connections: float
    messages: float
    bytes_sent: float
    memory_bytes: float
    #: shares of a core, by what takes them
    cores: dict[str, float]

    @property
    def shards(self) -> int:
        """Primaries of a cluster, if projects spread evenly."""
        return max(math.ceil(sum(self.cores.values()) / MOST_OF_CORE), math.ceil(self.connections / MOST_CLIENTS))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_parser(__doc__, rounds=7)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--views", type=int, default=100, help="simulated ones, which get messages")
    parser.add_argument("--proxies", type=int, default=50, help="idle ones")
    parser.add_argument("--calls", type=int, default=500, help="of one round")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one look at the idle proxies")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.sessions, options.views, options.proxies = 2, 300, 5, 2
        options.calls, options.seconds = 10, 0.2
    with RedisServer() as server, server.client() as client:
        facts = describe_machine(client)
        session_bytes = measure_memory(client, options.sessions)
        calls = measure_calls(server, client, options.rounds, options.calls)
    with RedisServer() as server, server.client() as client:
        message_us, message_bytes = measure_messages(
            server, client, options.views, options.rounds, options.calls, calls["write"]
        )
    with RedisServer() as server, server.client() as client:
        proxy = measure_proxies(server, client, options.proxies, options.rounds, options.seconds)
    units = Units(
        write_us=calls["write"],
        read_us=calls["read"],
        touch_us=calls["touch"],
        message_us=message_us,
        message_bytes=message_bytes,
        session_bytes=session_bytes,
        **proxy,
    )
    return conclude("capacity", facts, summarise(units), options)


def measure_memory(client: redis.Redis, count: int) -> float:
    """Bytes of one session in Redis."""
    before = _info(client, "used_memory")
    load_sessions(client, environment_keys(), count)
    return (_info(client, "used_memory") - before) / count


def measure_calls(server: RedisServer, client: redis.Redis, rounds: int, count: int) -> dict[str, float]:
    """Microseconds of a PUT without views, of a GET, and of one session of a touch."""
    taken: dict[str, list[float]] = {"write": [], "read": [], "touch": []}
    with SessionStore.from_url(server.url) as store:
        environment = store.environment(PROJECT, ENVIRONMENT)
        environment.put(session_key(0))  # on a server that has just begun, the first write waits for a lease
        for turn in range(rounds):
            numbers = range(turn * count, (turn + 1) * count)
            runs = {
                "write": lambda number: environment.put(session_key(0), label=str(number)),
                "read": lambda number: environment.get(session_key(0)),
                "touch": lambda number: _touch(environment),
            }
            for name, run in runs.items():
                taken[name].append(seconds_of_redis(client, run, numbers) / count * 1e6)
    return {name: statistics.median(values) / (TOUCHED if name == "touch" else 1) for name, values in taken.items()}


def _touch(environment: Environment) -> None:
    now_ms = int(time.time() * 1000)
    environment.touch({session_key(number): now_ms for number in range(TOUCHED)})


def measure_messages(
    server: RedisServer, client: redis.Redis, views: int, rounds: int, count: int, write_us: float
) -> tuple[float, float]:
    """Microseconds of a message to one view and its acknowledgement, and bytes that Redis sends for it."""
    taken, sent = [], []
    with Receivers(server.port, views, LONG_LEASE_MS), SessionStore.from_url(server.url) as store:
        environment = store.environment(PROJECT, ENVIRONMENT)
        count = max(2, count // 10)
        environment.put("ci-0")
        for turn in range(rounds):
            before = _info(client, "total_net_output_bytes")
            seconds = seconds_of_redis(
                client,
                lambda number: environment.put("ci-0", label=str(number)),
                range(turn * count, (turn + 1) * count),
            )
            taken.append((seconds / count * 1e6 - write_us) / views)
            sent.append((_info(client, "total_net_output_bytes") - before) / count / views)
    return statistics.median(taken), statistics.median(sent)


def measure_proxies(
    server: RedisServer, client: redis.Redis, count: int, rounds: int, seconds: float
) -> dict[str, float]:
    """What one idle proxy costs: a second of it in microseconds, bytes, connections."""
    with Peer(_idle, server.url, 1) as peer:  # the first one loads the scripts
        peer.receive()
    alone = share_of_core(client, seconds)
    memory, clients = _info(client, "used_memory"), _info(client, "connected_clients")
    with Peer(_idle, server.url, count) as peer:
        peer.receive()
        shares = [share_of_core(client, seconds) for _ in range(rounds)]
        return {
            "proxy_us": (statistics.median(shares) - alone) / 100 * 1e6 / count,
            "proxy_bytes": (_info(client, "used_memory") - memory) / count,
            "proxy_connections": (_info(client, "connected_clients") - clients) / count,
        }


def _idle(pipe: Connection, url: str, count: int) -> None:
    asyncio.run(_open_views(pipe, url, count))


async def _open_views(pipe: Connection, url: str, count: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            store = await stack.enter_async_context(AsyncSessionStore.from_url(url))
            await stack.enter_async_context(store.environment(PROJECT, ENVIRONMENT).view())
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)


def _info(client: redis.Redis, field: str) -> int:
    info: Any = client.info("all")
    return int(info[field])


def reckon(units: Units, load: Load) -> Need:
    """Multiply the unit costs."""
    proxies = load.projects * load.proxies
    writes = load.projects * load.writes
    messages = writes * load.proxies
    return Need(
        connections=proxies * units.proxy_connections,
        messages=messages,
        bytes_sent=messages * units.message_bytes,
        memory_bytes=load.projects * load.sessions * units.session_bytes + proxies * units.proxy_bytes,
        cores={
            "writes": writes * units.write_us / 1e6,
            "messages and acknowledgements": messages * units.message_us / 1e6,
            "renewals and heartbeats": proxies * units.proxy_us / 1e6,
            "touches": proxies * load.looked_up * units.touch_us / 1e6,
        },
    )


def bearable_writes(units: Units, views: int) -> float:
    """Writes a second that fill a shard, if so many views serve each."""
    return MOST_OF_CORE * 1e6 / (units.write_us + views * units.message_us)


def summarise(units: Units) -> Report:
    needs = [reckon(units, load) for load in LOADS]
    rows = [
        ["projects", *(f"{load.projects:,}" for load in LOADS)],
        ["sessions", *(f"{load.projects * load.sessions:,}" for load in LOADS)],
        ["writes a second", *(f"{load.projects * load.writes:,}" for load in LOADS)],
        ["messages to views a second", *(f"{need.messages:,.0f}" for need in needs)],
        ["MB a second out of Redis", *(f"{need.bytes_sent / 1e6:,.1f}" for need in needs)],
        ["connections", *(f"{need.connections:,.0f}" for need in needs)],
        ["MB in Redis", *(f"{need.memory_bytes / 1e6:,.1f}" for need in needs)],
        *([f"cores: {kind}", *(f"{need.cores[kind]:,.3f}" for need in needs)] for kind in needs[0].cores),
        ["**shards**", *(f"**{need.shards:,}**" for need in needs)],
    ]
    first = LOADS[0]
    notes = [
        f"Each project has {first.writes} writes a second and {first.sessions:,} sessions. Each proxy looks up "
        f"{first.looked_up} sessions a second.",
        f"CPU time of Redis: a PUT {units.write_us:.0f} µs, a GET {units.read_us:.0f} µs, a message to a view with its "
        f"acknowledgement {units.message_us:.1f} µs, a second of an idle proxy {units.proxy_us:.0f} µs, a looked-up "
        f"session {units.touch_us:.1f} µs.",
        f"A session takes {units.session_bytes:,.0f} bytes of Redis, an idle proxy {units.proxy_bytes / 1000:,.0f} kB "
        f"and {units.proxy_connections:.0f} connections. Redis sends {units.message_bytes:,.0f} bytes for a message.",
        f"A shard is full at {MOST_OF_CORE:.0%} of a core, or {MOST_CLIENTS:,} connections. It bears "
        f"{bearable_writes(units, 0):,.0f} writes a second without views, {bearable_writes(units, 10):,.0f} with 10, "
        f"{bearable_writes(units, 100):,.0f} with 100 and {bearable_writes(units, 1_000):,.0f} with 1,000; or "
        f"{MOST_OF_CORE * 1e6 / units.proxy_us:,.0f} idle proxies. A GB holds {1e9 / units.session_bytes / 1e6:.1f} "
        "million sessions.",
    ]
    bars = [
        Bar(f"shards of {load.projects * load.proxies:,} proxies", None, need.shards, unit="")
        for load, need in zip(LOADS, needs, strict=True)
    ]
    columns = ["proxies", *(f"{load.projects * load.proxies:,}" for load in LOADS)]
    figures = [
        {"proxies": load.projects * load.proxies, "cores": need.cores} for load, need in zip(LOADS, needs, strict=True)
    ]
    return Report("What Redis needs for its proxies", columns, rows, bars, figures, notes)


if __name__ == "__main__":
    sys.exit(main())
