"""What the gateway tells Prometheus; docs/operations.md says of each metric what to alert on.

Labels are bounded: routes by their template, methods that there are, scripts, codes, and registered environments; never
a session key, nor anything else that a client made up. What a request adds to is looked up once and kept, so that
counting it costs a few microseconds.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric

from sessionstore import AsyncSessionStore, Effect, __version__
from sessionstore.api_keys.ring import Refusal
from sessionstore.errors import NotEffectiveError, SessionStoreError

from .description import Operation, describe
from .errors import STATUS, BadRequestError
from .exchange import Exchange, Reply
from .tallies import Tallies, Tally

__all__ = ["Metrics"]

log = logging.getLogger("gateway")

#: Seconds, upper bounds: a request takes about a millisecond, and one that waits for views up to a lease and a third.
_REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_EFFECT_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 3, 5, 10)

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})

#: Projects whose live sessions are counted, at most: those that were asked for first.
_MAX_PROJECTS = 100
#: Seconds for which a count is shown again: /metrics asks for no key, and must not be a way to load Redis.
_COUNT_AGAIN_S = 5.0
#: Seconds that a scrape waits for counts; without them it has none.
_COUNT_DEADLINE_S = 1.0


class Metrics:
    """All metrics of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("sessionstore_build", "Versions.", registry=registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        self._requests = Counter(
            "sessionstore_http_requests", "Requests answered.", ("route", "method", "status"), registry=registry
        )
        self._request_seconds = Tallies(
            "sessionstore_http_request_seconds",
            "Seconds from a request's head to the end of its response.",
            ("route", "method"),
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self._errors = Counter(
            "sessionstore_http_errors", "Requests answered with an error.", ("code",), registry=registry
        )
        for code in STATUS:
            # From 0 on: a rate misses what it does not see begin.
            self._errors.labels(code)
        self._refusals = Counter(
            "sessionstore_unauthenticated", "Requests refused for their key.", ("reason",), registry=registry
        )
        for reason in Refusal:
            self._refusals.labels(reason.value)
        self._rate_limited = Counter(
            "sessionstore_rate_limited", "Requests refused over the rate limit.", registry=registry
        )
        self._uncounted = Counter(
            "sessionstore_limiter_failures", "Requests let through uncounted by the rate limit.", registry=registry
        )
        self._redis_seconds = Tallies(
            "sessionstore_redis_call_seconds",
            "Seconds of each round trip to Redis.",
            ("script",),
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self._redis_errors = Counter(
            "sessionstore_redis_errors", "Round trips to Redis that failed.", ("script", "error"), registry=registry
        )
        effective_seconds = Tallies(
            "sessionstore_write_effective_seconds",
            "Seconds from a write's commit until every live view served it.",
            buckets=_EFFECT_BUCKETS,
            registry=registry,
        )
        self._effective_seconds = effective_seconds.labels()
        self._confirmed = Counter(
            "sessionstore_views_confirmed", "Views that confirmed a write, summed over writes.", registry=registry
        )
        self._expired = Counter(
            "sessionstore_views_expired", "Views whose lease ran out while a write waited.", registry=registry
        )
        self._not_effective = Counter(
            "sessionstore_writes_not_effective",
            "Writes that were committed, and answered with an error since not every view may serve them.",
            registry=registry,
        )
        self._live_sessions = Gauge(
            "sessionstore_live_sessions",
            "Live sessions of the registered environments of projects that this gateway has served.",
            ("project", "environment"),
            registry=registry,
        )
        self._projects: dict[str, AsyncSessionStore] = {}
        self._counted_at = float("-inf")
        self._counting = asyncio.Lock()
        self._answered: dict[tuple[str, str, int], tuple[Counter, Tally]] = {}
        self._scripts: dict[str, Tally] = {}

    # What is told of as it happens

    def answered(self, exchange: Exchange, error: SessionStoreError | None) -> None:
        """Count a request that is over."""
        key = exchange.route, exchange.method, exchange.status
        children = self._answered.get(key)
        if children is None:
            children = self._remember(*key)
        counter, tally = children
        counter.inc()
        tally.observe(time.perf_counter() - exchange.started_s)
        if exchange.effect is not None:
            self._took_effect(exchange.effect)
        if exchange.error_code is not None:
            self._errors.labels(exchange.error_code).inc()
            if exchange.error_code == "rate_limited":
                self._rate_limited.inc()
            if isinstance(error, NotEffectiveError):
                self._not_effective.inc()

    def malformed(self) -> None:
        """Count what was refused before it was a request."""
        self._errors.labels(BadRequestError.code).inc()

    def refused(self, reason: Refusal) -> None:
        """Count a request that was refused for its key."""
        self._refusals.labels(reason.value).inc()

    def let_through(self) -> None:
        """Count a request that the rate limit could not count."""
        self._uncounted.inc()

    def called_redis(self, script: str, seconds: float, error: SessionStoreError | None) -> None:
        """Count a round trip: a store's `observe`."""
        tally = self._scripts.get(script)
        if tally is None:
            tally = self._scripts[script] = self._redis_seconds.labels(script)
        tally.observe(seconds)
        if error is not None:
            self._redis_errors.labels(script, type(error).__name__.removesuffix("Error")).inc()

    def served(self, store: AsyncSessionStore, project: str) -> None:
        """Remember a project, whose live sessions are counted from now on if it has registered environments."""
        if project not in self._projects:
            if len(self._projects) >= _MAX_PROJECTS:
                del self._projects[next(iter(self._projects))]
            self._projects[project] = store

    # What Prometheus asks for

    @describe(Operation(answer="text/plain"))
    async def read_metrics(self, exchange: Exchange) -> Reply:
        """Metrics for Prometheus, in its text format."""
        await self._count_sessions()
        return Reply(200, generate_latest(_WithoutTimes(self._registry)), media_type=_MEDIA_TYPE)

    async def _count_sessions(self) -> None:
        async with self._counting:
            if time.monotonic() - self._counted_at < _COUNT_AGAIN_S:
                return
            self._counted_at = time.monotonic()
            counts: dict[tuple[str, str], int] = {}
            try:
                async with asyncio.timeout(_COUNT_DEADLINE_S):
                    for project, store in tuple(self._projects.items()):
                        found = await store.project(project).live_sessions()
                        if not found:
                            # Nothing is registered, as where the name was mistyped: it makes room for another.
                            self._projects.pop(project, None)
                        for environment, count in found.items():
                            counts[project, environment] = count
            except (SessionStoreError, TimeoutError) as exc:
                log.info("The live sessions can't be counted: %s", str(exc) or type(exc).__name__)
                counts = {}
            self._live_sessions.clear()
            for labels, count in counts.items():
                self._live_sessions.labels(*labels).set(count)

    def _took_effect(self, effect: Effect) -> None:
        if effect.waited:
            self._effective_seconds.observe(effect.effective_s)
            if effect.confirmed:
                self._confirmed.inc(effect.confirmed)
            if effect.expired:
                self._expired.inc(effect.expired)

    def _remember(self, route: str, method: str, status: int) -> tuple[Counter, Tally]:
        shown = method if method in _METHODS else "other"
        children = self._requests.labels(route, shown, str(status)), self._request_seconds.labels(route, shown)
        if shown == method:
            self._answered[route, method, status] = children
        return children


class _WithoutTimes:
    """A registry without the time at which each counter was made, which nobody asks for and which doubles a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


_MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4.encode()
