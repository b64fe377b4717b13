"""What does a write cost Redis, when so many views serve it? Against the same exchange by hand.

A write sets a session, publishes it to every view, and returns when each of them has acknowledged it. By hand: a script
that sets a hash and publishes as many bytes to as many receivers, each of which answers with a script of five commands;
the last answer wakes the writer.

Views and receivers are simulated in a few processes (`receivers`): to Redis, each is a process of its own. The figures
are CPU time of the redis-server process, so it does not matter how slow the others are.

Besides: the share of Redis's core that renewals of idle views take, beyond what it takes while nobody renews.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

from sessionstore import SessionStore
from tests.support.redis_server import RedisServer

from .dataset import ENVIRONMENT, PROJECT
from .receivers import BY_HAND, DONE, Receivers
from .redis_cpu import seconds_of_redis, share_of_core
from .report import Bar, Report, arguments_parser, conclude, describe_machine, median_ratio

#: Bars: of the exchange by hand, with so many views; and the percentage of Redis's core that renewals take.
MAX_OF_BY_HAND, VIEWS_OF_BAR = 1.2, (100, 400)
MAX_RENEWALS, RENEWING_VIEWS = 6.0, 1000

#: A lease that is not renewed while writes are measured, and the usual one.
LONG_LEASE_MS, LEASE_MS = 60_000, 2_000
#: Acknowledgements of one round, about.
ANSWERS = 4_000
#: Seconds in which all must have answered.
PATIENCE_S = 30.0
PAYLOAD_BYTES = 330

# KEYS[1] session (hash)  [2] channel  [3] head  ARGV[1] message  [2] label
SET_AND_PUBLISH = """
redis.call('HSET', KEYS[1], 'label', ARGV[2], 'overrides', '["ovr_extraMock"]', 'lastSeenAt', redis.call('TIME')[1])
redis.call('PEXPIRE', KEYS[1], 86400000)
redis.call('HINCRBY', KEYS[3], 'rev', 1)
return redis.call('SPUBLISH', KEYS[2], ARGV[1])
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_parser(__doc__, rounds=7)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 100, 400, 1000])
    parser.add_argument("--seconds", type=float, default=2.0, help="of one look at the renewals")
    options = parser.parse_args(arguments)
    answers, renewing = ANSWERS, RENEWING_VIEWS
    if options.quick:
        options.views, options.rounds, options.seconds, answers, renewing = [1, 5], 2, 0.2, 10, 5
    found: dict[int, tuple[list[float], list[float]]] = {}
    for views in options.views:
        with RedisServer() as server, Receivers(server.port, views, LONG_LEASE_MS):
            found[views] = measure_writes(server, options.rounds, min(200, max(2, answers // views)))
    idle, _ = measure_share(renewing, options.rounds, options.seconds, renew=False)
    shares, facts = measure_share(renewing, options.rounds, options.seconds, renew=True)
    renewals = [share - statistics.median(idle) for share in shares]
    return conclude("redis", facts, summarise(found, renewing, renewals), options)


def measure_share(views: int, rounds: int, seconds: float, *, renew: bool) -> tuple[list[float], dict[str, str]]:
    """Percentages of a core that Redis takes for idle views, and the facts of the machine."""
    lease_ms = LEASE_MS if renew else LONG_LEASE_MS
    # One process sends all: several would wake each other, and take the caches of Redis's core.
    with (
        RedisServer() as server,
        server.client() as client,
        Receivers(server.port, views, lease_ms, processes=1) as many,
    ):
        if renew:
            many.renew()
        return [share_of_core(client, seconds) for _ in range(rounds)], describe_machine(client)


def measure_writes(server: RedisServer, rounds: int, count: int) -> tuple[list[float], list[float]]:
    """Seconds of Redis for one write, and for one exchange by hand, of each round."""
    with SessionStore.from_url(server.url) as store, server.client() as client, client.pubsub() as done:
        environment = store.environment(PROJECT, ENVIRONMENT)
        set_and_publish: Any = client.register_script(SET_AND_PUBLISH)
        done.ssubscribe(DONE)
        done.get_sharded_message(timeout=PATIENCE_S)  # the confirmation

        def write(number: int) -> None:
            environment.put("ci-0", label=str(number))

        def exchange(number: int) -> None:
            message = f"{number} ".ljust(PAYLOAD_BYTES)
            set_and_publish(keys=["by-hand:ci-0", BY_HAND, "by-hand:head"], args=[message, number])
            answer = done.get_sharded_message(timeout=PATIENCE_S)
            if answer is None or int(answer["data"]) != number:
                raise TimeoutError("A receiver did not answer.")

        write(0)  # on a server that has just begun, the first write waits for a lease
        ours: list[float] = []
        by_hand: list[float] = []
        for turn in range(-1, rounds):  # the first one is there to warm up
            numbers = range(count * (turn + 1) + 1, count * (turn + 2) + 1)
            for kind, taken in ((write, ours), (exchange, by_hand)):
                seconds = seconds_of_redis(client, kind, numbers)
                if turn >= 0:
                    taken.append(seconds / count)
    return ours, by_hand


def summarise(found: dict[int, tuple[list[float], list[float]]], renewing: int, renewals: list[float]) -> Report:
    rows: list[list[str]] = []
    bars: list[Bar] = []
    figures: list[dict[str, object]] = []
    for views, (ours, by_hand) in found.items():
        ratio = median_ratio(ours, by_hand)
        ours_us, by_hand_us = statistics.median(ours) * 1e6, statistics.median(by_hand) * 1e6
        rows.append([f"{views:,}", f"{ours_us:,.0f}", f"{by_hand_us:,.0f}", f"{ratio:.2f}"])
        figures.append({"views": views, "us": ours_us, "by_hand_us": by_hand_us, "ratio": ratio})
        limit = MAX_OF_BY_HAND if views in VIEWS_OF_BAR else None
        bars.append(Bar(f"{views:,} views, Redis's CPU of the exchange by hand", limit, ratio))
    share = statistics.median(renewals)
    bars.append(Bar(f"renewals of {renewing:,} idle views, of a core", MAX_RENEWALS, share, unit="%"))
    columns = ["live views", "Redis µs", "by hand µs", "ratio"]
    notes = [f"Renewals of {renewing:,} idle views take {share:.1f} % of Redis's core."]
    return Report("What a write costs Redis", columns, rows, bars, figures, notes)


if __name__ == "__main__":
    sys.exit(main())
