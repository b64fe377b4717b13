"""What does the gateway cost? PUT and GET through it, against a bare Starlette route over the same Redis.

The bare PUT route takes the same JSON, and makes one EVALSHA of the very script that the gateway runs, with as many
arguments, so that Redis does the same work for both. It answers with the script's reply. The bare GET route makes one
HGETALL and answers with its fields as JSON.
The bare routes authenticate and check nothing. The gateway authenticates and validates, with its access log off, in
three ways: with the one key of its settings; with a key of the key store, on a project that has a catalog; and the same
with the rate limiter on, at a limit that no load reaches. The first two share a process; each other app has its own.

All run Uvicorn with the gateway's own settings, without an access log. Rounds are interleaved.
A ratio is the median of the rounds' ratios. The limiter's is recorded; no limit applies.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import redis.asyncio
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.server import listening_socket, server_config
from sessionstore import SessionPatch, SessionStore
from sessionstore.api_keys.model import generate_secret
from sessionstore.protocol import calls
from sessionstore.protocol.calls import Terms, WriteContext
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from tests.support.redis_server import RedisServer, free_port

from .load import Outcome, request, run_load
from .report import Bar, Report, arguments_parser, conclude, describe_machine, percentile

#: Bars, of the bare route's rate, by the number of connections: each has one request in flight.
LEAST = {16: {"PUT": 0.8, "GET": 0.8}, 64: {"PUT": 1.0, "GET": 1.2}}
#: The load is spread over this many sessions of each project.
SESSIONS = 1000
METHODS = ("PUT", "GET")

#: A limit that no load reaches, and a catalog with what the PUTs set.
NEVER_MET = "100000000/60"
CATALOG = {
    "project": "catalogued",
    "environments": {"staging": {"mocks": [{"id": "ovr_extraMock", "name": "Extra mock"}], "scenarios": []}},
}

#: The apps that are measured.
PLAIN, KEYS, LIMITED, BARE = "gateway", "gateway, key store and catalog", "gateway, limiter too", "bare"

#: Tells the guard that the app has made the response.
_REQUEST_ID = {"x-request-id": "bare"}


class App(NamedTuple):
    """One app under load, and the key that it takes; the bare routes take none."""

    port: int
    project: str
    secret: str | None


class Figures(Struct):
    """One row of the table."""

    name: str
    connections: int
    rps: float
    p50_ms: float
    p99_ms: float
    #: of the bare route's requests per second
    ratio: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_parser(__doc__, rounds=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run; default: 2")
    parser.add_argument("--bare", nargs=2, metavar=("PORT", "REDIS_URL"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.bare:
        serve_bare(int(options.bare[0]), options.bare[1])
        return 0
    if options.quick:
        options.rounds, options.seconds = 1, 0.1
    with RedisServer() as server, contextlib.ExitStack() as stack:
        plain = generate_secret()
        with SessionStore.from_url(server.url) as store:  # which makes Redis know the scripts, too
            key = store.api_keys.create("benchmark", project="catalogued").secret
            store.project("catalogued").apply_catalog(CATALOG)
            for project, number in itertools.product(("checkout", "catalogued"), range(SESSIONS)):
                store.environment(project, "staging").put(
                    f"ci-{number}", label="warm", overrides=["ovr_extraMock"], wait=False
                )
        ports = [free_port(), free_port(), free_port()]
        apps = {
            PLAIN: App(ports[0], "checkout", plain),
            KEYS: App(ports[0], "catalogued", key),
            LIMITED: App(ports[1], "catalogued", key),
            BARE: App(ports[2], "checkout", None),
        }
        environment = {**os.environ, "SESSIONSTORE_API_KEY": plain, "SESSIONSTORE_REDIS_URL": server.url}
        gateway = [sys.executable, "-m", "gateway", "--no-access-log", "--log-level", "warning"]
        for command in (
            [*gateway, "--port", str(ports[0]), "--rate-limit", "off"],
            [*gateway, "--port", str(ports[1]), "--rate-limit", NEVER_MET],
            [sys.executable, "-m", "benchmarks.bench_gateway", "--bare", str(ports[2]), server.url],
        ):
            process = subprocess.Popen(command, env=environment)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        with asyncio.Runner(loop_factory=uvicorn.Config("", loop="auto").get_loop_factory()) as runner:
            outcomes = runner.run(measure(apps, options.rounds, options.seconds))
        with server.client() as client:
            facts = describe_machine(client)
    return conclude("gateway", facts, summarise(outcomes), options)


#: The outcomes of each round, by connections, method and app.
Outcomes = dict[tuple[int, str, str], list[Outcome]]


async def measure(apps: dict[str, App], rounds: int, seconds: float) -> Outcomes:
    loads = {(method, name): (app.port, _requests(app, method)) for name, app in apps.items() for method in METHODS}
    for app in apps.values():
        await _await_listener(app.port)
    for port, requests in loads.values():
        await run_load(port, requests, connections=max(LEAST), seconds=seconds / 4)
    outcomes: Outcomes = {load: [] for load in itertools.product(LEAST, METHODS, apps)}
    order = list(apps)
    for _ in range(rounds):
        for connections, method in itertools.product(LEAST, METHODS):
            for name in order:
                port, requests = loads[method, name]
                outcome = await run_load(port, requests, connections=connections, seconds=seconds)
                outcomes[connections, method, name].append(outcome)
        # Who comes first rotates: a slow spell of the machine hits all alike.
        order = order[1:] + order[:1]
    return outcomes


def summarise(outcomes: Outcomes) -> Report:
    rows: list[list[str]] = []
    bars: list[Bar] = []
    results: list[Figures] = []
    for (connections, method, app), runs in outcomes.items():
        name = f"{connections}: {method} {app}"
        latencies = sorted(itertools.chain.from_iterable(run.latencies_s for run in runs))
        pairs = zip(runs, outcomes[connections, method, BARE], strict=True)
        ratio = statistics.median(run.rate / bare.rate for run, bare in pairs)
        if app != BARE:
            bars.append(Bar(name, None if app == LIMITED else LEAST[connections][method], ratio, at_least=True))
        figures = Figures(
            name,
            connections,
            statistics.median(run.rate for run in runs),
            percentile(latencies, 0.5) * 1000,
            percentile(latencies, 0.99) * 1000,
            ratio,
        )
        results.append(figures)
        rows.append(
            [name, f"{figures.rps:,.0f}", f"{figures.p50_ms:.2f}", f"{figures.p99_ms:.2f}", f"{figures.ratio:.2f}"]
        )
    columns = ["connections: request", "per second", "p50 ms", "p99 ms", "of the bare route's rate"]
    off_page = [row[0] for row in rows if row[0].endswith((KEYS, LIMITED))]
    return Report("The gateway against a bare Starlette route", columns, rows, bars, results, off_page=off_page)


def serve_bare(port: int, redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    counter = itertools.count()
    # The gateway's own call, as a template: only these places differ from request to request.
    context = WriteContext(EnvironmentKeyspace("ss", "checkout", "bare"), 86_400_000, 2000, time.monotonic)
    patch = SessionPatch(label="LABEL", overrides=("ovr_OVERRIDE",), global_delay_ms=1)
    call = calls.put(context, "OP", "KEY", patch, terms=Terms(wait=False))
    (session, *keys), args = call.keys, list(call.args)
    places = [args.index(name) for name in ("OP", "KEY", "LABEL", '["ovr_OVERRIDE"]', 1)]

    async def put(request: Request) -> Response:
        key = request.path_params["key"]
        body = await request.json()
        overrides = json.dumps(body["overrides"], separators=(",", ":"))
        values = (f"w{next(counter)}", key, body["label"], overrides, body["globalDelayMs"])
        own = args.copy()
        for place, value in zip(places, values, strict=True):
            own[place] = value
        names = [session[: -len("KEY")] + key, *keys]
        reply = await client.evalsha(call.script.sha, len(names), *names, *own)
        if not reply.startswith('{"status":"ok"'):
            raise RuntimeError(f"The bare route's write failed: {reply}")
        return Response(reply, headers=_REQUEST_ID, media_type="application/json")

    async def get(request: Request) -> Response:
        return JSONResponse(
            await client.hgetall(f"ss:{{checkout}}:staging:s:{request.path_params['key']}"), headers=_REQUEST_ID
        )

    app = Starlette(routes=[Route("/{key}", put, methods=["PUT"]), Route("/{key}", get, methods=["GET"])])
    config = server_config(app, shutdown_grace_s=1)
    uvicorn.Server(config).run([listening_socket("127.0.0.1", port)])


def _requests(app: App, method: str) -> Iterator[bytes]:
    """Requests without end; each PUT changes its session."""
    made = []
    for number in range(SESSIONS):
        if app.secret is None:
            target, headers = f"/ci-{number}", {}
        else:
            target = f"/api/v1/sessions/ci-{number}?project={app.project}&environment=staging"
            headers = {"authorization": f"Bearer {app.secret}"}
        bodies = [b"", b""]
        if method == "PUT":
            headers["content-type"] = "application/json"
            body = '{{"label":"run {}","overrides":["ovr_extraMock"],"globalDelayMs":0}}'
            bodies = [body.format(turn).encode() for turn in (1, 2)]
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
    sys.exit(main())
