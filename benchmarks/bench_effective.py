"""What does it cost to be effective on return? Writes that wait for every live view, against writes that don't.

By turns, one process makes

- a write that answers at commit (`put(..., wait=False)`),
- a write that answers when every live view serves it (`put(...)`), and
- the same exchange by hand with redis-py: an EVALSHA that sets a hash and publishes, receivers that answer each message
  with a PUBLISH, and a writer that waits until it has all their replies. Without leases, and so without an answer where
  a receiver is gone.

Views and receivers live in the same processes, at most eight, each with connections of its own; while one kind works,
the other one only waits. Writer, views and receivers are all asyncio, or all threads.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import redis
import redis.asyncio

from sessionstore import AsyncSessionStore, SessionStore
from tests.support.redis_server import RedisServer

from .dataset import ENVIRONMENT, PROJECT
from .followers import BY_HAND, REPLIES, Followers
from .report import Bar, Report, arguments_parser, conclude, describe_machine, median_ratio, percentile

#: Bars: without a view, of a write that answers at commit; with eight, of the exchange by hand.
MAX_OF_COMMIT, MAX_OF_BY_HAND, VIEWS_OF_BAR = 1.1, 1.3, 8

#: Seconds between two writes: at least, and for each view, so that one is over before the next one begins.
PAUSE_S, PAUSE_OF_EACH_S = 0.002, 0.0005
#: Writes of each kind before the first round.
WARM_UP = 10
#: Seconds that replies by hand may take.
PATIENCE_S = 10.0

COMMIT, EFFECTIVE, EXCHANGE = "commit only", "effective", "by hand"

#: What a write by hand does in Redis. KEYS[1] session (hash)  [2] channel; ARGV[1] message  [2] label
SET_AND_PUBLISH = """
redis.call('HSET', KEYS[1], 'label', ARGV[2], 'overrides', '["ovr_extraMock"]', 'lastSeenAt', redis.call('TIME')[1])
redis.call('PEXPIRE', KEYS[1], 86400000)
return redis.call('PUBLISH', KEYS[2], ARGV[1])
"""
PAYLOAD_BYTES = 330

#: Sorted seconds of each round, by kind of write.
Rounds = dict[str, list[list[float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_parser(__doc__, rounds=7)
    parser.add_argument("--views", type=int, nargs="+", default=[0, 1, 8, 32])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--count", type=int, default=100, help="writes of each kind in one round")
    options = parser.parse_args(arguments)
    if options.quick:
        options.views, options.rounds, options.count = [0, 2], 2, 4
    found: dict[tuple[str, int], Rounds] = {}
    with RedisServer() as server, server.client() as client:
        facts = describe_machine(client)
        for kind, count in itertools.product(options.kinds, options.views):
            with Followers(server.url, count, asynchronous=kind == "asyncio", reply=True):
                found[kind, count] = KINDS[kind](server.url, count, options.rounds, options.count)
    return conclude("effective", facts, summarise(found), options)


def measure_threads(url: str, views: int, rounds: int, count: int) -> Rounds:
    """Seconds of each write, with views and receivers in threads."""
    with SessionStore.from_url(url) as store, redis.Redis.from_url(url) as client, client.pubsub() as replies:
        environment = store.environment(PROJECT, ENVIRONMENT)
        set_and_publish: Any = client.register_script(SET_AND_PUBLISH)
        replies.subscribe(REPLIES)
        replies.get_message(timeout=PATIENCE_S)  # the confirmation

        def exchange(number: int) -> None:
            set_and_publish(keys=["by-hand:ci-0", BY_HAND], args=[f"{number} ".ljust(PAYLOAD_BYTES), number])
            missing = views
            while missing:
                missing -= _is_reply_to(number, replies.get_message(timeout=PATIENCE_S))

        writes = {
            COMMIT: lambda number: environment.put("ci-0", label=str(number), wait=False),
            EFFECTIVE: lambda number: environment.put("ci-0", label=str(number)),
            EXCHANGE: exchange,
        }
        taken: Rounds = {kind: [[] for _ in range(rounds)] for kind in writes}
        for turn, kind, number in _turns(writes, rounds, count):
            started = time.perf_counter()
            writes[kind](number)
            if turn >= 0:
                taken[kind][turn].append(time.perf_counter() - started)
            time.sleep(PAUSE_S + PAUSE_OF_EACH_S * views)
    return taken


def measure_asyncio(url: str, views: int, rounds: int, count: int) -> Rounds:
    """The same, with everything on event loops."""
    return asyncio.run(_measure_asyncio(url, views, rounds, count))


async def _measure_asyncio(url: str, views: int, rounds: int, count: int) -> Rounds:
    async with (
        AsyncSessionStore.from_url(url) as store,
        redis.asyncio.Redis.from_url(url) as client,
        client.pubsub() as replies,
    ):
        environment = store.environment(PROJECT, ENVIRONMENT)
        set_and_publish: Any = client.register_script(SET_AND_PUBLISH)
        await replies.subscribe(REPLIES)
        await replies.get_message(timeout=PATIENCE_S)  # the confirmation

        async def exchange(number: int) -> None:
            await set_and_publish(keys=["by-hand:ci-0", BY_HAND], args=[f"{number} ".ljust(PAYLOAD_BYTES), number])
            missing = views
            while missing:
                missing -= _is_reply_to(number, await replies.get_message(timeout=PATIENCE_S))

        writes: dict[str, Callable[[int], Awaitable[object]]] = {
            COMMIT: lambda number: environment.put("ci-0", label=str(number), wait=False),
            EFFECTIVE: lambda number: environment.put("ci-0", label=str(number)),
            EXCHANGE: exchange,
        }
        taken: Rounds = {kind: [[] for _ in range(rounds)] for kind in writes}
        for turn, kind, number in _turns(writes, rounds, count):
            started = time.perf_counter()
            await writes[kind](number)
            if turn >= 0:
                taken[kind][turn].append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE_S + PAUSE_OF_EACH_S * views)
    return taken


KINDS = {"asyncio": measure_asyncio, "threads": measure_threads}


def _is_reply_to(number: int, message: Any) -> bool:
    if message is None:
        raise TimeoutError("A receiver did not reply.")
    return int(message["data"]) == number


def _turns(kinds: Iterable[str], rounds: int, count: int) -> Iterator[tuple[int, str, int]]:
    """Round, kind and number of each write, by turns; round -1 is there to warm up."""
    numbers = itertools.count(1)
    order = list(kinds)
    for turn in range(-1, rounds):
        for _ in range(count if turn >= 0 else WARM_UP):
            for kind in order:
                yield turn, kind, next(numbers)
            # Who follows on whom changes, too.
            order = order[::-1] if next(numbers) % 2 else order[1:] + order[:1]


def summarise(found: dict[tuple[str, int], Rounds]) -> Report:
    rows: list[list[str]] = []
    bars: list[Bar] = []
    figures: list[dict[str, object]] = []
    for (kind, views), taken in found.items():
        p50 = {write: [statistics.median(times) for times in rounds] for write, rounds in taken.items()}
        p99 = {write: [percentile(sorted(times), 0.99) for times in rounds] for write, rounds in taken.items()}
        of_commit = median_ratio(p50[EFFECTIVE], p50[COMMIT])
        of_exchange = median_ratio(p50[EFFECTIVE], p50[EXCHANGE])
        name = f"{kind}, {views} view{'' if views == 1 else 's'}"
        p50_us = {write: statistics.median(values) * 1e6 for write, values in p50.items()}
        p99_us = {write: statistics.median(values) * 1e6 for write, values in p99.items()}
        rows.append(
            [
                name,
                *(f"{p50_us[write]:,.0f}" for write in (COMMIT, EXCHANGE, EFFECTIVE)),
                *(f"{p99_us[write]:,.0f}" for write in (EXCHANGE, EFFECTIVE)),
                f"{of_commit:.2f}",
                f"{of_exchange:.2f}" if views else "",
            ]
        )
        figures.append({"kind": kind, "views": views, "p50_us": p50_us, "p99_us": p99_us})
        if views == 0:
            bars.append(Bar(f"{name}: p50 of commit only", MAX_OF_COMMIT, of_commit))
        elif views == VIEWS_OF_BAR:
            bars.append(Bar(f"{name}: p50 of the exchange by hand", MAX_OF_BY_HAND, of_exchange))
    columns = [
        "live views",
        "commit p50 µs",
        "by hand p50 µs",
        "effective p50 µs",
        "by hand p99 µs",
        "effective p99 µs",
        "× commit",
        "× by hand",
    ]
    off_page = [row[0] for row in rows if row[0].endswith(" 8 views")]
    return Report("Writes that are effective on return", columns, rows, bars, figures, off_page=off_page)


if __name__ == "__main__":
    sys.exit(main())
