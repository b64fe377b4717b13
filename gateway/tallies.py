"""Histograms that are cheap to add to: what the gateway counts with on each request.

`prometheus_client.Histogram` takes a lock twice and looks through its buckets one by one, which for three histograms is
a tenth of a whole request. A gateway is one event loop, so a list of counts is enough; it becomes Prometheus's own form
when it is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["Tallies", "Tally"]


class Tally:
    """The observations of one combination of labels."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        #: how many observations were in each bucket alone; the last has no upper bound
        self.counts = [0] * (len(bounds) + 1)
        #: the sum of all
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Tallies(Collector):
    """A histogram for Prometheus, with a `Tally` for each combination of labels; for use by one thread.

    Parameters
    ----------
    name, documentation : str
        As Prometheus shows them.
    labels : sequence of str
        Names of the labels.
    buckets : tuple of float
        Upper bounds, ascending.
    registry : CollectorRegistry
        Where to register.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: tuple[float, ...],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._buckets = buckets
        self._names = [*map(floatToGoString, buckets), "+Inf"]
        self._tallies: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """The tally of these labels' values; keep it, to be quick."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {self._labels}, and was given {values}.")
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = Tally(self._buckets)
        return tally

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads: each bucket with those below it."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, tally in self._tallies.items():
            below = 0
            buckets = []
            for name, count in zip(self._names, tally.counts, strict=True):
                below += count
                buckets.append((name, float(below)))
            family.add_metric(values, buckets, tally.total)
        yield family
