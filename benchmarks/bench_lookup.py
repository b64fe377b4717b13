"""What does it cost to look a session up? `view.get` against `dict.get` of the same keys, and against Redis and caches.

In local memory, all look up the same keys in random order, in turns of a thousand. The time of an empty loop is
subtracted, and a ratio is the median over the turns. The keys are equal to those of the view, but other objects, like
the value of a request's header. A *header* is such a key as raw bytes or text. The views flush touches less often than
the benchmark lasts: a *hit* finds a session that was looked up since the last flush, a *first* look-up is recorded.

Redis and the caches are asked for a few keys. So is the view again: its *hot* hits are of the keys that the caches
hold, and like theirs they were looked up just before.

The second part times each look-up by itself, while another process makes 5,000 changes a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, cast

import redis
import redis.asyncio
from cashews import Cache
from redis.cache import CacheConfig

from sessionstore import AsyncSessionStore, SessionPatch, SessionStore
from sessionstore.protocol import calls
from sessionstore.protocol.calls import Terms, WriteContext
from sessionstore.protocol.operations import new_id
from sessionstore.protocol.scripts import load_script
from sessionstore.replica.held_session import HeldSession
from sessionstore.replica.view import BaseView
from sessionstore.transport.resp import evalsha
from tests.support.redis_server import RedisServer

from .dataset import ENVIRONMENT, PROJECT, environment_keys, load_sessions, session_key
from .peers import Peer
from .report import Bar, Report, arguments_parser, conclude, describe_machine, median_ratio, percentile

#: Bars: of `dict.get`, of redis-py's GET, and of the best cache on the client's side.
MAX_OF_DICT, MIN_OF_GET, MIN_OF_CACHE = 6, 500, 20
#: Bars: look-ups by header, of a hit by key; and p99.9 under changes, of that of `dict.get`.
MAX_HEADER_OF_HIT, MAX_TAIL_OF_DICT = 1.7, 3

PLAIN, HIT, MISS, HOT = "dict.get", "view.get hit", "view.get miss", "view.get hot hit"
BYTES, TEXT = "view.get_by_header, bytes", "view.get_by_header, str"
GET, GET_ASYNCIO = "redis-py GET", "redis-py GET, asyncio"
CLIENT_SIDE, CASHEWS = "redis-py client-side caching", "cashews client-side"
ON_PAGE = (PLAIN, HIT, BYTES, HOT, GET)
TAIL = 0.999
TAILS = {"p50": 0.5, "p99.9": TAIL}
KINDS = (", threads", ", asyncio")

#: Look-ups of one run in local memory; more among a million sessions, so that not all fit into the CPU's caches.
LOOKUPS, LOOKUPS_OF_A_MILLION = 20_000, 200_000
#: Look-ups of one turn, and those of one run that waits for Redis or goes through a cache.
TURN, ROUND_TRIPS = 1000, 200
#: The value in Redis and the caches: about as large as a session in JSON.
VALUE = b"x" * 300
#: Seconds between two flushes: none while this runs.
NO_FLUSH_S = 3600.0
OPEN_TIMEOUT_S = 180.0
#: Seconds of a lease: the asyncio view can't renew it during a run.
LEASE_S = 60.0

#: Changed sessions, changes a second, and changes in one pipeline.
SESSIONS_UNDER_CHANGES, CHANGES_PER_S, BURST = 10_000, 5000, 25
#: Look-ups in a row, and the seconds after them for other threads and tasks.
SLICE, PAUSE_S = 100, 0.0005
#: Seconds of changes that are caught up after a slow spell.
BEHIND_S = 0.1

LookUp = Callable[[Any], object]
#: Nanoseconds by contender.
Times = dict[str, list[float]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_parser(__doc__, rounds=12)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 10_000, 1_000_000], help="sessions")
    parser.add_argument("--seconds", type=float, default=5.0, help="of look-ups under changes, for each kind of view")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.rounds, options.seconds = [200], 1, 0.1
    found: dict[int, Times] = {}
    opened: dict[int, float] = {}
    with RedisServer() as server, server.client() as client:
        facts = describe_machine(client)
        refusal = caching_refusal(server)
        for size in options.sizes:
            client.flushall()
            load_sessions(client, environment_keys(), size)
            found[size], opened[size] = asyncio.run(measure(server, size, options.rounds))
        client.flushall()
        load_sessions(client, environment_keys(), SESSIONS_UNDER_CHANGES)
        tails, rate = asyncio.run(measure_under_changes(server, options.seconds))
    report = summarise(found, tails, rate)
    print("Opening a view took " + ", ".join(f"{s:.1f} s ({n:,} sessions)" for n, s in opened.items()))
    if refusal is not None:
        print(f"{CLIENT_SIDE}: skipped. {refusal}")
    return conclude("lookup", facts, report, options)


async def measure(server: RedisServer, size: int, rounds: int) -> tuple[Times, float]:
    """Nanoseconds of one look-up, for each contender and round; and seconds that opening a view took."""
    keys = [session_key(number) for number in range(size)]
    async with contextlib.AsyncExitStack() as stack:
        environment = stack.enter_context(SessionStore.from_url(server.url, lease_s=LEASE_S)).environment(
            PROJECT, ENVIRONMENT
        )
        started = time.monotonic()
        view = stack.enter_context(environment.view(touch_interval_s=NO_FLUSH_S, timeout_s=OPEN_TIMEOUT_S))
        opened_s = time.monotonic() - started
        strict = stack.enter_context(environment.view(touch_interval_s=NO_FLUSH_S, on_stale="raise"))
        async_store = await stack.enter_async_context(AsyncSessionStore.from_url(server.url, lease_s=LEASE_S))
        async_view = await stack.enter_async_context(
            async_store.environment(PROJECT, ENVIRONMENT).view(
                touch_interval_s=NO_FLUSH_S, timeout_s=OPEN_TIMEOUT_S, on_stale="raise"
            )
        )
        plain = {session.session_key: session for session in map(view.peek, keys) if session is not None}
        assert len(plain) == size, "the view holds all loaded sessions"
        client = stack.enter_context(server.client())
        async_client = await stack.enter_async_context(redis.asyncio.Redis.from_url(server.url))
        hash_of = environment_keys().session
        remote: list[tuple[str, LookUp]] = [
            (GET, lambda key: client.get("plain:" + key)),
            ("redis-py HGETALL", lambda key: client.hgetall(hash_of(key))),
        ]
        if caching_refusal(server) is None:
            caching = redis.Redis.from_url(server.url, protocol=3, cache_config=CacheConfig(max_size=2 * ROUND_TRIPS))
            stack.callback(caching.close)
            remote.append((CLIENT_SIDE, lambda key: caching.get("plain:" + key)))
        cache = await stack.enter_async_context(_cashews(server))
        times: Times = {}
        for _ in range(rounds):
            sample = _fresh(random.choices(keys, k=LOOKUPS_OF_A_MILLION if size >= 1_000_000 else LOOKUPS))
            for key in sample:
                view.get(key)  # records the first look-ups
                async_view.get(key)
            await asyncio.sleep(0)
            _time_by_turns(
                [
                    (PLAIN, plain.get, sample),
                    (HIT, view.get, sample),
                    (f"{HIT}, on_stale=raise", strict.get, sample),
                    (f"{HIT}, asyncio, on_stale=raise", async_view.get, sample),
                    (MISS, view.get, [f"no-{key}" for key in sample]),
                    (BYTES, view.get_by_header, [key.encode() for key in sample]),
                    (TEXT, view.get_by_header, [key.encode().decode() for key in sample]),
                ],
                times,
            )
            unseen = list(dict.fromkeys(sample))
            for key in unseen:
                cast("HeldSession", plain[key]).set_touched_at(0.0)  # as a flush does
            times.setdefault("view.get first since a flush", []).append(_time(view.get, unseen))
            await asyncio.sleep(0)

            # A few keys, which surely fit into each cache; all contenders have just looked them up.
            few = random.choices(keys, k=ROUND_TRIPS)
            client.mset({"plain:" + key: VALUE for key in few})
            for key in few:
                await cache.set(key, VALUE)
                await cache.get(key)
            for name, look_up in [(HOT, view.get), *remote]:
                if name in (HOT, CLIENT_SIDE):
                    _time(look_up, few)
                times.setdefault(name, []).append(_time(look_up, few))
            times.setdefault(GET_ASYNCIO, []).append(
                await _time_async(async_client.get, ["plain:" + key for key in few])
            )
            times.setdefault(CASHEWS, []).append(await _time_async(cache.get, few))
            await asyncio.sleep(0.01)
        return times, opened_s


def caching_refusal(server: RedisServer) -> str | None:
    """Why redis-py does not cache on the client's side with this server; None if it does."""
    try:
        with redis.Redis.from_url(server.url, protocol=3, cache_config=CacheConfig()) as client:
            client.get("any")
    except redis.RedisError as exc:
        return str(exc)
    return None


@contextlib.asynccontextmanager
async def _cashews(server: RedisServer) -> AsyncIterator[Cache]:
    """A cache on the client's side, which Redis invalidates."""
    cache = Cache()
    cache.setup(server.url, client_side=True)
    await cache.init()
    try:
        yield cache
    finally:
        await cache.close()


def _fresh(keys: Sequence[str]) -> list[str]:
    """Equal keys, as objects of their own, hashed once."""
    made = [(key + " ")[:-1] for key in keys]
    for key in made:
        hash(key)
    return made


def _time_by_turns(contenders: Sequence[tuple[str, LookUp, Sequence[Any]]], times: Times) -> None:
    """Let all look up all keys in turns of `TURN`, each at another place, so that none warms the next one's memory."""
    turns = len(contenders[0][2]) // TURN or 1
    for turn in range(turns):
        for number, (name, look_up, keys) in enumerate(contenders):
            place = (turn + number * turns // len(contenders)) % turns * TURN
            part = keys[place : place + TURN]
            times.setdefault(name, []).append(_time(look_up, part))


def _time(look_up: LookUp, keys: Sequence[Any]) -> float:
    """Nanoseconds of one look-up, without the loop."""
    started = time.perf_counter_ns()
    for _ in keys:
        pass
    began = time.perf_counter_ns()
    for key in keys:
        look_up(key)
    ended = time.perf_counter_ns()
    return (ended - began - (began - started)) / len(keys)


async def _time_async(look_up: Callable[[str], Awaitable[object]], keys: Sequence[str]) -> float:
    started = time.perf_counter_ns()
    for key in keys:
        await look_up(key)
    return (time.perf_counter_ns() - started) / len(keys)


async def measure_under_changes(server: RedisServer, seconds: float) -> tuple[Times, float]:
    """Nanoseconds of each look-up while changes arrive, sorted; and how many changes arrived each second."""
    keys = [session_key(number) for number in range(SESSIONS_UNDER_CHANGES)]
    times: Times = {}
    with Peer(make_changes, server.url, len(keys)) as changing:
        changing.receive()
        # One kind of view at a time: the other would take CPU time.
        with SessionStore.from_url(server.url) as store, store.environment(PROJECT, ENVIRONMENT).view() as view:
            slow = await _look_up_under_changes(view, KINDS[0], keys, seconds, times)
        async with (
            AsyncSessionStore.from_url(server.url) as async_store,
            async_store.environment(PROJECT, ENVIRONMENT).view() as async_view,
        ):
            rate = await _look_up_under_changes(async_view, KINDS[1], keys, seconds, times)
    return {name: sorted(found) for name, found in times.items()}, min(slow, rate)


async def _look_up_under_changes(view: BaseView, kind: str, keys: list[str], seconds: float, times: Times) -> float:
    """Look up in slices, by turns in a dict and in the view; returns how many changes a second the view applied."""
    plain = {key: view.peek(key) for key in keys}
    contenders: itertools.cycle[tuple[str, LookUp]] = itertools.cycle([("dict.get", plain.get), ("view.get", view.get)])
    started, applied = time.monotonic(), view.stats.revision
    while time.monotonic() - started < seconds:
        sample = _fresh(random.choices(keys, k=SLICE))
        name, look_up = next(contenders)
        found = times.setdefault(name + kind, [])
        for key in sample:
            before = time.perf_counter_ns()
            look_up(key)
            found.append(time.perf_counter_ns() - before)
        # Other threads and tasks run, as while a proxy waits for a server.
        await asyncio.sleep(PAUSE_S)
    return (view.stats.revision - applied) / (time.monotonic() - started)


def make_changes(pipe: Connection, url: str, sessions: int) -> None:
    """Change sessions at `CHANGES_PER_S` until something is received. Runs as a `Peer`."""
    context = WriteContext(environment_keys(), ttl_ms=24 * 60 * 60 * 1000, lease_ms=2000, clock=time.monotonic)
    with redis.Redis.from_url(url) as client:
        client.script_load(load_script("put").text)
        pipe.send("ready")
        due = time.monotonic()
        for burst in itertools.count():
            pipeline = client.pipeline(transaction=False)
            for number in range(BURST):
                key = session_key((burst * BURST + number) % sessions)
                call = calls.put(context, new_id(), key, SessionPatch(label=f"burst {burst}"), terms=Terms(False))
                pipeline.execute_command(*evalsha(call))
            pipeline.execute()
            due = max(due + BURST / CHANGES_PER_S, time.monotonic() - BEHIND_S)
            if pipe.poll(max(0.0, due - time.monotonic())):
                return


def summarise(found: dict[int, Times], tails: Times, rate: float) -> Report:
    rows: list[list[str]] = []
    bars: list[Bar] = []
    for size, times in found.items():
        plain, hot = times[PLAIN], times[HOT]
        for name, runs in times.items():
            # Only contenders of the same turns have a ratio.
            of_dict = f"{median_ratio(runs, plain):,.2f}" if len(runs) == len(plain) else ""
            of_hot = f"{median_ratio(runs, hot):,.1f}" if len(runs) == len(hot) else ""
            rows.append([f"{size:,}: {name}", f"{statistics.median(runs):,.0f}", of_dict, of_hot])
        best = min((times[name] for name in (CLIENT_SIDE, CASHEWS) if name in times), key=statistics.median)
        at = f"at {size:,} sessions"
        for name in times:
            if name.startswith(HIT):
                value = median_ratio(times[name], plain)
                bars.append(Bar(f"{name} {at}, of dict.get", MAX_OF_DICT, value))
        bars += [
            Bar(f"{name} {at}, of a hit by key", MAX_HEADER_OF_HIT, median_ratio(times[name], times[HIT]))
            for name in (BYTES, TEXT)
        ]
        bars += [
            Bar(f"{name} {at}, of a hot hit", MIN_OF_GET, median_ratio(times[name], hot), True)
            for name in (GET, GET_ASYNCIO)
        ]
        bars.append(Bar(f"the best client-side cache {at}, of a hot hit", MIN_OF_CACHE, median_ratio(best, hot), True))
    notes = []
    for name, sorted_ns in tails.items():
        shares = ", ".join(f"{label} {percentile(sorted_ns, share):,.0f} ns" for label, share in TAILS.items())
        notes.append(f"{name}, under {rate:,.0f} changes a second: {shares}")
    for kind in KINDS:
        value = percentile(tails["view.get" + kind], TAIL) / percentile(tails["dict.get" + kind], TAIL)
        bars.append(Bar(f"p99.9 of view.get{kind}, under changes, of that of dict.get", MAX_TAIL_OF_DICT, value))
    figures = {
        "sizes": {
            str(size): {name: statistics.median(runs) for name, runs in times.items()} for size, times in found.items()
        },
        "changes_per_s": rate,
        "tails": {
            name: {label: percentile(sorted_ns, share) for label, share in TAILS.items()}
            for name, sorted_ns in tails.items()
        },
    }
    columns = ["sessions: look-up", "ns", "× dict.get", "× a hot hit"]
    # The page shows the fewest and the most sessions; other rows say nearly the same.
    off_page = [
        f"{size:,}: {name}"
        for size, times in found.items()
        for name in times
        if size not in (min(found), max(found)) or name not in ON_PAGE
    ]
    return Report("Look-ups", columns, rows, bars, figures, notes, off_page)


if __name__ == "__main__":
    sys.exit(main())
