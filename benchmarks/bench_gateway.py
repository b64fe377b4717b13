"""What does the gateway cost? PUT and GET through it, against a bare Starlette route over the same Redis.

The bare PUT route reads the body and makes one EVALSHA of the very script that the gateway runs, so that Redis does the
same work for both; the bare GET route makes one HGETALL and answers with its fields as JSON. Neither authenticates or
checks anything. Each app runs in a process of its own, under the same Uvicorn; the gateway authenticates and validates,
with its access log off. Rounds are interleaved, and a ratio is the median of those of single rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import redis.asyncio
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.server import listening_socket, server_config
from sessionstore import SessionStore
from sessionstore.apikeys import generate_secret
from sessionstore.scripts import load_script
from tests.redis_server import RedisServer, free_port

from .load import Outcome, request, run_load
from .report import describe_machine, percentile, print_table, write_results

#: Requests in flight, and seconds of each run.
CONNECTIONS = 16
#: Sessions that the load is spread over.
SESSIONS = 1000

#: What the gateway has to reach of the bare route's requests per second.
BAR = 0.9


class Figures(Struct):
    """One row of the table."""

    name: str
    rps: float
    p50_ms: float
    p99_ms: float
    #: of the bare route's requests per second
    ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run")
    parser.add_argument("--bare", nargs=2, metavar=("PORT", "REDIS_URL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        serve_bare(int(arguments.bare[0]), arguments.bare[1])
        return
    with RedisServer() as server, contextlib.ExitStack() as stack:
        secret = generate_secret()
        ports = {"gateway": free_port(), "bare": free_port()}
        environment = {**os.environ, "SESSIONSTORE_API_KEY": secret, "SESSIONSTORE_REDIS_URL": server.url}
        flags = ["--no-access-log", "--log-level", "warning"]
        for command in (
            [sys.executable, "-m", "gateway", "--port", str(ports["gateway"]), *flags],
            [sys.executable, "-m", "benchmarks.bench_gateway", "--bare", str(ports["bare"]), server.url],
        ):
            process = subprocess.Popen(command, env=environment)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        with SessionStore.from_url(server.url) as store:  # which makes Redis know the scripts, too
            for number in range(SESSIONS):
                store.environment("checkout", "staging").put(f"ci-{number}", label="warm", overrides=["ovr_extraMock"])
        with asyncio.Runner(loop_factory=uvicorn.Config("", loop="auto").get_loop_factory()) as runner:
            outcomes = runner.run(measure(ports, secret, arguments.rounds, arguments.seconds))
        with server.client() as client:
            facts = describe_machine(client)
    show(outcomes, facts)


async def measure(ports: dict[str, int], secret: str, rounds: int, seconds: float) -> dict[str, list[Outcome]]:
    loads = {(app, method): (ports[app], _requests(app, method, secret)) for app in ports for method in ("PUT", "GET")}
    for port in ports.values():
        await _await_listener(port)
    for port, requests in loads.values():
        await run_load(port, requests, connections=CONNECTIONS, seconds=0.5)
    outcomes: dict[str, list[Outcome]] = {}
    for number in range(rounds):
        for method in ("PUT", "GET"):
            # Who comes first alternates: a slow spell of the machine hits both alike.
            for app in ("gateway", "bare") if number % 2 else ("bare", "gateway"):
                port, requests = loads[app, method]
                outcome = await run_load(port, requests, connections=CONNECTIONS, seconds=seconds)
                outcomes.setdefault(f"{method} {app}", []).append(outcome)
    return outcomes


def show(outcomes: dict[str, list[Outcome]], facts: dict[str, str]) -> None:
    rows: list[list[object]] = []
    results: list[Figures] = []
    for name, runs in outcomes.items():
        method = name.split()[0]
        latencies = sorted(itertools.chain.from_iterable(run.latencies_s for run in runs))
        pairs = zip(runs, outcomes[f"{method} bare"], strict=True)
        ratio = statistics.median(run.rate / bare.rate for run, bare in pairs)
        figures = Figures(
            name,
            statistics.median(run.rate for run in runs),
            percentile(latencies, 0.5) * 1000,
            percentile(latencies, 0.99) * 1000,
            ratio,
        )
        results.append(figures)
        rows.append(
            [name, f"{figures.rps:,.0f}", f"{figures.p50_ms:.2f}", f"{figures.p99_ms:.2f}", f"{figures.ratio:.2f}"]
        )
    columns = ("request", "per second", "p50 ms", "p99 ms", "of the bare route's rate")
    print_table(f"Gateway against a bare Starlette route, {CONNECTIONS} connections", facts, columns, rows)
    for figures in results:
        if figures.name.endswith("gateway"):
            verdict = "holds" if figures.ratio >= BAR else "MISSED"
            print(f"{figures.name}: {figures.ratio:.2f} of the bare route, the bar is {BAR}: {verdict}")
    print(f"written to {write_results('gateway', facts, results)}")


def serve_bare(port: int, redis_url: str) -> None:
    script = load_script("put")
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    counter = itertools.count()
    base = "ss:{checkout}:bare"
    shared = [f"{base}:{name}" for name in ("index", "head", "leases", "acks", "views", "environments", "changes")]
    catalog = [f"{base}:catalog{name}" for name in ("", ":mocks", ":local", ":scenarios")]
    settings: list[str | int] = [86_400_000, 2000, 0, "1", "bare"]

    async def put(request: Request) -> Response:
        key = request.path_params["key"]
        label = (await request.body()).decode()
        keys = [f"{base}:s:{key}", *shared, *catalog]
        reply = await client.evalsha(
            script.sha, len(keys), *keys, f"w{next(counter)}", *settings, key, "", "", "+label", label
        )
        return Response(reply, media_type="application/json")

    async def get(request: Request) -> Response:
        return JSONResponse(await client.hgetall(f"ss:{{checkout}}:staging:s:{request.path_params['key']}"))

    app = Starlette(routes=[Route("/{key}", put, methods=["PUT"]), Route("/{key}", get, methods=["GET"])])
    uvicorn.Server(server_config(app, shutdown_grace_s=1)).run([listening_socket("127.0.0.1", port)])


def _requests(app: str, method: str, secret: str) -> Iterator[bytes]:
    """Requests without end; each PUT changes its session."""
    made = []
    for number in range(SESSIONS):
        if app == "bare":
            target, headers, label = f"/ci-{number}", {}, "run {}"
        else:
            target = f"/api/v1/sessions/ci-{number}?project=checkout&environment=staging"
            headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
            label = '{{"label":"run {}","overrides":["ovr_extraMock"],"globalDelayMs":0}}'
        bodies = [label.format(turn).encode() for turn in (1, 2)] if method == "PUT" else [b"", b""]
        made.append([request(method, target, headers, body) for body in bodies])
    return itertools.cycle([pair[turn] for turn in (0, 1) for pair in made])


async def _await_listener(port: int) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


if __name__ == "__main__":
    main()
