"""The gateway's metrics for Prometheus; docs/operations.md says what to alert on.

Labels are bounded: route templates, known methods, scripts, codes, primaries of Redis and registered environments. No
label holds a session key or any other text of a client.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Callable, Coroutine
from functools import cache, partial

import prometheus_client as prometheus
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response

from sessionstore import AsyncSessionStore, __version__
from sessionstore.api_keys.model import KeySnapshot
from sessionstore.api_keys.ring import Refusal
from sessionstore.errors import SessionStoreError

from .description import Operation
from .errors import STATUS
from .record import Record

log = logging.getLogger("gateway")

#: Upper bounds in seconds. A request takes about a millisecond; a write that waits for views, up to 1.3 leases.
_REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_EFFECT_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 3, 5, 10)

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})

#: Projects whose live sessions are counted, and named ones that may have no environment.
_MAX_PROJECTS = 100
#: Seconds for which a scrape and a count are reused. /metrics asks for no key, so scrapes must load neither the gateway
#: nor Redis.
_SCRAPE_AGAIN_S = 1.0
_COUNT_AGAIN_S = 5.0
#: Seconds that a scrape waits for the counts before it leaves them out.
_COUNT_DEADLINE_S = 1.0


class Metrics:
    """All metrics of one gateway, in its own registry."""

    def __init__(self) -> None:
        # The start time of each series doubles the size of a scrape and answers no question.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = prometheus.CollectorRegistry()
        counter = partial(prometheus.Counter, registry=registry)
        histogram = partial(prometheus.Histogram, registry=registry)
        prometheus.ProcessCollector(registry=registry)
        build = prometheus.Info("sessionstore_build", "Versions.", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})
        # The series of some labels are found once.
        requests = counter("sessionstore_http_requests", "Requests answered.", ("route", "method", "status"))
        self._requests = cache(requests.labels)
        request_seconds = histogram(
            "sessionstore_http_request_seconds",
            "Seconds from a request's head to the end of its response.",
            ("route", "method"),
            buckets=_REQUEST_BUCKETS,
        )
        self._request_seconds = cache(request_seconds.labels)
        self._errors = counter("sessionstore_http_errors", "Requests answered with an error.", ("code",))
        self._refusals = counter("sessionstore_unauthenticated", "Requests refused for their key.", ("reason",))
        # From 0 on, so that a rate sees the first one.
        for code in STATUS:
            self._errors.labels(code)
        for reason in Refusal:
            self._refusals.labels(reason.value)
        self._corrupt_keys = prometheus.Gauge(
            "sessionstore_corrupt_api_keys",
            "Records of API keys that are corrupt, at the last load.",
            registry=registry,
        )
        self._key_age = prometheus.Gauge(
            "sessionstore_api_keys_age_seconds",
            "Seconds since the API keys were loaded from Redis.",
            registry=registry,
        )
        self._corrupt_sessions = counter(
            "sessionstore_corrupt_sessions", "Corrupt records of sessions that requests met."
        )
        self._uncounted = counter("sessionstore_limiter_failures", "Requests that passed uncounted by the rate limit.")
        redis_seconds = histogram(
            "sessionstore_redis_call_seconds",
            "Seconds of each round trip to Redis.",
            ("script",),
            buckets=_REQUEST_BUCKETS,
        )
        self._redis_seconds = cache(redis_seconds.labels)
        self._redis_errors = counter(
            "sessionstore_redis_errors", "Round trips to Redis that failed.", ("script", "error")
        )
        self._effective_seconds = histogram(
            "sessionstore_write_effective_seconds",
            "Seconds from a write's commit until every live view served it.",
            buckets=_EFFECT_BUCKETS,
        )
        self._confirmed = counter("sessionstore_views_confirmed", "Views that confirmed a write, summed over writes.")
        self._expired = counter("sessionstore_views_expired", "Views whose lease expired while a write waited.")
        self._durable_seconds = histogram(
            "sessionstore_write_durable_seconds",
            "Seconds from a write's commit until the replicas that it asked for had it.",
            buckets=_EFFECT_BUCKETS,
        )
        #: error codes that have a metric of their own
        self._by_code = {
            "rate_limited": counter("sessionstore_rate_limited", "Requests refused over the rate limit."),
            "not_effective": counter(
                "sessionstore_writes_not_effective",
                "Writes that were committed and answered with an error, because a view may not serve them.",
            ),
            "not_durable": counter(
                "sessionstore_writes_not_durable",
                "Writes that were committed and answered with an error, because too few replicas had them in time.",
            ),
        }
        self._live_sessions = prometheus.Gauge(
            "sessionstore_live_sessions",
            "Live sessions of the registered environments of projects that this gateway has served.",
            ("project", "environment"),
            registry=registry,
        )
        self._live_views = prometheus.Gauge(
            "sessionstore_live_views",
            "Live views of the same environments.",
            ("project", "environment"),
            registry=registry,
        )
        self._primary_up = prometheus.Gauge(
            "sessionstore_redis_primary_up",
            "1 if a primary of Redis answered at the last check, else 0.",
            ("address",),
            registry=registry,
        )
        self._store: AsyncSessionStore | None = None
        #: addresses that the gauge shows
        self._primaries: frozenset[str] = frozenset()
        #: projects that have registered environments, and those that were named since the last count
        self._projects: dict[str, AsyncSessionStore] = {}
        self._named: dict[str, AsyncSessionStore] = {}
        self._counted_at = self._scraped_at = float("-inf")
        self._scrape = b""
        self._scraping = asyncio.Lock()

    # Called by the app

    def answered(self, record: Record) -> None:
        """Count a finished request."""
        method = record.method if record.method in _METHODS else "other"
        self._requests(record.route, method, record.status).inc()
        self._request_seconds(record.route, method).observe(time.perf_counter() - record.started_s)
        effect = record.effect
        if effect is not None and effect.waited:
            self._effective_seconds.observe(effect.effective_s)
            self._confirmed.inc(effect.confirmed)
            self._expired.inc(effect.expired)
        if effect is not None and effect.replicas:
            self._durable_seconds.observe(effect.durable_s)
        if record.corrupt:
            self._corrupt_sessions.inc(len(record.corrupt))
        if record.code is not None:
            self._errors.labels(record.code).inc()
            if record.code in self._by_code:
                self._by_code[record.code].inc()

    def rejected(self, code: str) -> None:
        """Count an answer to a connection that had no request."""
        self._errors.labels(code).inc()

    def refused(self, reason: Refusal) -> None:
        """Count a request that was refused for its key."""
        self._refusals.labels(reason.value).inc()

    def show_key_age(self, age_s: Callable[[], float]) -> None:
        """Show what `age_s` returns at each scrape."""
        self._key_age.set_function(age_s)

    def check_primaries_of(self, store: AsyncSessionStore) -> None:
        """Check the primaries of a store at scrapes."""
        self._store = store

    def loaded_keys(self, snapshot: KeySnapshot) -> None:
        """Show how many records of a load are corrupt."""
        self._corrupt_keys.set(len(snapshot.corrupt))

    def let_through(self) -> None:
        """Count a request that passed uncounted."""
        self._uncounted.inc()

    def called_redis(self, script: str, seconds: float, error: SessionStoreError | None) -> None:
        """Count a round trip to Redis: a store's `observe`."""
        self._redis_seconds(script).observe(seconds)
        if error is not None:
            self._redis_errors.labels(script, type(error).__name__.removesuffix("Error")).inc()

    def served(self, store: AsyncSessionStore, project: str) -> None:
        """Remember a project. Its live sessions are counted from now on if it has registered environments."""
        if project in self._projects:
            self._projects[project] = self._projects.pop(project)  # the newest one
        elif len(self._named) < _MAX_PROJECTS:
            self._named[project] = store

    # Called by Prometheus

    @Operation(answer="text/plain")
    async def read_metrics(self, request: Request) -> Response:
        """Metrics for Prometheus, in its text format."""
        async with self._scraping:
            if time.monotonic() - self._scraped_at >= _SCRAPE_AGAIN_S:
                await self._count_live()
                self._scrape = prometheus.generate_latest(self._registry)
                self._scraped_at = time.monotonic()
        return Response(self._scrape, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _count_live(self) -> None:
        if time.monotonic() - self._counted_at < _COUNT_AGAIN_S:
            return
        self._counted_at = time.monotonic()
        self._live_sessions.clear()
        self._live_views.clear()
        deadline = asyncio.get_running_loop().time() + _COUNT_DEADLINE_S

        async def count(project: str, counting: Coroutine[None, None, None]) -> None:
            try:
                async with asyncio.timeout_at(deadline):
                    await counting
            except (SessionStoreError, TimeoutError) as exc:
                reason = str(exc) or type(exc).__name__
                log.info("The live sessions and views of %s can't be counted: %s", project, reason)

        # All at once, so that a project whose Redis is down is missing alone.
        named = (count(name, self._check_named(name)) for name in self._named)
        await asyncio.gather(self._check_primaries(), *named)
        await asyncio.gather(*(count(name, self._count_project(name, store)) for name, store in self._projects.items()))

    async def _check_primaries(self) -> None:
        if self._store is None:
            return
        try:
            errors = await self._store.check_primaries(_COUNT_DEADLINE_S)
        except SessionStoreError as exc:
            # Nothing names the primaries now, so those before are down.
            errors = dict.fromkeys(self._primaries, exc)
        self._primary_up.clear()
        for address, error in errors.items():
            self._primary_up.labels(address).set(error is None)
        self._primaries = frozenset(errors)

    async def _check_named(self, project: str) -> None:
        """Take a project in, in place of the oldest one, if it has environments. Else a client mistyped its name."""
        registered = await self._named[project].project(project).environments()
        store = self._named.pop(project)
        if registered:
            while len(self._projects) >= _MAX_PROJECTS:
                del self._projects[next(iter(self._projects))]
            self._projects[project] = store

    async def _count_project(self, project: str, store: AsyncSessionStore) -> None:
        found = await store.project(project).live_counts()
        if not found:
            self._projects.pop(project, None)
        for environment, counts in found.items():
            self._live_sessions.labels(project, environment).set(counts.sessions)
            self._live_views.labels(project, environment).set(counts.views)
