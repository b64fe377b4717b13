"""The cheap histograms, against prometheus-client's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from gateway.tallies import Tallies

BUCKETS = (0.001, 0.25, 1, 10)
VALUES = st.one_of(st.sampled_from(BUCKETS), st.floats(0, 100, allow_subnormal=False))


def lines(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), VALUES), max_size=30))
def test_shows_what_a_histogram_shows(observations: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies("seconds", "Seconds.", ("route",), buckets=BUCKETS, registry=ours)
    histogram = Histogram("seconds", "Seconds.", ("route",), buckets=BUCKETS, registry=theirs)

    for route, value in observations:
        tallies.labels(route).observe(value)
        histogram.labels(route).observe(value)

    assert lines(ours) == lines(theirs)


def test_without_labels_is_there_once_it_is_asked_for() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Tallies("seconds", "Seconds.", buckets=BUCKETS, registry=ours).labels()
    Histogram("seconds", "Seconds.", buckets=BUCKETS, registry=theirs)

    assert lines(ours) == lines(theirs)


def test_values_are_as_many_as_labels() -> None:
    tallies = Tallies("seconds", "Seconds.", ("route",), buckets=BUCKETS, registry=CollectorRegistry())

    with pytest.raises(ValueError, match="route"):
        tallies.labels()
