"""How long until a change that one process makes can be looked up in another? Against redis-py's publish → receive.

One process writes, with `put(..., wait=False)`, and publishes as many bytes by hand with redis-py, by turns; others
have views and, in the same processes, as many redis-py subscriptions. Times are of CLOCK_MONOTONIC, which all processes
of a machine share: from before the call until the view's callback is told, when the change can be looked up, and until
redis-py hands the message over. So what the write itself does, in its process and in Redis, is part of the figure.

Views and subscriptions are spread over at most eight processes. Each view has a store of its own, and so each view and
each subscription has a connection of its own.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from sessionstore import SessionStore
from tests.support.redis_server import RedisServer

from .dataset import ENVIRONMENT, PROJECT
from .followers import BY_HAND, Followers, Seen
from .report import Bar, Report, arguments_parser, conclude, describe_machine, median_ratio, percentile

#: Bars, of redis-py's publish → receive: the median, also with one view, and p99.
MAX_P50, MAX_P50_OF_ONE, MAX_P99 = 1.5, 1.4, 2.0

#: Seconds between two changes: at least, and for each follower, so that one is over before the next one begins.
PAUSE_S, PAUSE_OF_EACH_S = 0.002, 0.0005
#: Bytes of a message by hand: those of a change.
PAYLOAD_BYTES = 330

KINDS = {"asyncio": True, "threads": False}

#: Seconds, sorted, of each round.
Rounds = list[list[float]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_parser(__doc__, rounds=7)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--count", type=int, default=150, help="changes of one round")
    options = parser.parse_args(arguments)
    if options.quick:
        options.views, options.rounds, options.count = [2], 2, 5
    found: dict[tuple[str, int], tuple[Rounds, Rounds]] = {}
    with RedisServer() as server, server.client() as client:
        facts = describe_machine(client)
        for kind, count in itertools.product(options.kinds, options.views):
            with Followers(server.url, count, asynchronous=KINDS[kind], reply=False) as followers:
                found[kind, count] = measure(server, followers, options.rounds, options.count)
        stats: Any = client.info("commandstats")
    report = summarise(found)
    in_redis = [f"{stats[f'cmdstat_{name}']['usec_per_call']:.0f}" for name in ("evalsha", "publish")]
    report.notes.append(
        f"Redis spent {in_redis[0]} µs on a script, most of which were writes, and {in_redis[1]} µs on a PUBLISH."
    )
    return conclude("propagation", facts, report, options)


def measure(server: RedisServer, followers: Followers, rounds: int, count: int) -> tuple[Rounds, Rounds]:
    """Seconds until a view has a change, and until a message by hand is received, of every round."""
    views: Rounds = []
    by_hand: Rounds = []
    with SessionStore.from_url(server.url) as store, server.client() as client:
        environment = store.environment(PROJECT, ENVIRONMENT)
        environment.put("ci-0", label="0", wait=False)
        client.publish(BY_HAND, "0 ")
        followers.await_seen(1)
        for _ in range(rounds):
            put_at: dict[int, float] = {}
            published_at: dict[int, float] = {}
            for number in range(1, count + 1):
                put_at[number] = time.monotonic()
                environment.put("ci-0", label=str(number), wait=False)
                time.sleep(PAUSE_S + PAUSE_OF_EACH_S * followers.count)
                payload = f"{number} ".ljust(PAYLOAD_BYTES)
                published_at[number] = time.monotonic()
                client.publish(BY_HAND, payload)
                time.sleep(PAUSE_S + PAUSE_OF_EACH_S * followers.count)
            seen_by_views, seen_by_hand = followers.await_seen(count)
            views.append(_taken_s(put_at, seen_by_views))
            by_hand.append(_taken_s(published_at, seen_by_hand))
    return views, by_hand


def _taken_s(sent_at: dict[int, float], seen: Seen) -> list[float]:
    return sorted(at - sent_at[number] for number, times in seen.items() for at in times)


def summarise(found: dict[tuple[str, int], tuple[Rounds, Rounds]]) -> Report:
    rows: list[list[str]] = []
    bars: list[Bar] = []
    figures: list[dict[str, object]] = []
    for (kind, count), (views, by_hand) in found.items():
        row = [f"{kind}, {count} view{'s' if count > 1 else ''}"]
        figure: dict[str, object] = {"kind": kind, "views": count}
        for share, limit in ((0.5, MAX_P50_OF_ONE if count == 1 else MAX_P50), (0.99, MAX_P99)):
            ours, theirs = ([percentile(times, share) for times in rounds] for rounds in (views, by_hand))
            ratio = median_ratio(ours, theirs)
            ours_us, theirs_us = statistics.median(ours) * 1e6, statistics.median(theirs) * 1e6
            row += [f"{ours_us:,.0f}", f"{theirs_us:,.0f}", f"{ratio:.2f}"]
            name = f"p{share * 100:g}"
            figure |= {f"{name}_us": ours_us, f"{name}_bare_us": theirs_us, f"{name}_ratio": ratio}
            bars.append(Bar(f"{row[0]}, {name} of publish → receive", limit, ratio))
        rows.append(row)
        figures.append(figure)
    columns = ["views", "p50 µs", "bare p50 µs", "ratio", "p99 µs", "bare p99 µs", "ratio"]
    off_page = [row[0] for row in rows if row[0].endswith(" 8 views")]
    return Report("From a write to a view in another process", columns, rows, bars, figures, [], off_page)


if __name__ == "__main__":
    sys.exit(main())
