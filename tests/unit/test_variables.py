"""Environment variables and times, as people write them."""

from __future__ import annotations

import pytest

from sessionstore.errors import InvalidInputError
from sessionstore.variables import KNOWN, parse_seconds, read_variable, show_seconds, unknown_variables


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("0.5", 0.5), ("30m", 1800), ("1.5 h", 5400), ("1d", 86_400), (" 2w ", 1_209_600)],
)
def test_reads_a_time_with_its_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1y", "-1", "1e3", "nan", "inf", "1 d 2 h", "²", "1" * 13])
def test_rejects_other_text(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^must be a time, such as 90s, 30m, 12h or 1d\.$"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["0.9s", "61m"])
def test_names_the_bounds_of_a_time(text: str) -> None:
    with pytest.raises(InvalidInputError, match="from 1s to 1h,"):
        parse_seconds(text, 1, 3600)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.001, "0.001s"), (90, "90s"), (60, "1m"), (31_622_400, "366d"), (5400, "90m")]
)
def test_writes_a_time_in_its_largest_unit(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("unknown", "known"),
    [
        ("REDIS", "REDIS_URL"),
        ("REDISURL", "REDIS_URL"),
        ("PROJCT", "PROJECT"),
        ("ENV", "ENVIRONMENT"),
        ("KEY", "API_KEY"),
        ("", ""),
    ],
)
def test_names_the_nearest_known_variable(unknown: str, known: str) -> None:
    [sentence] = unknown_variables({f"SESSIONSTORE_{unknown}": "x", "HOME": "/", "SESSIONSTORE_URL": "x"})
    assert f"SESSIONSTORE_{unknown} is unknown" in sentence
    assert f"did you mean SESSIONSTORE_{known}" in sentence


def test_knows_the_variables_of_the_client() -> None:
    assert {"URL", "API_KEY", "PROJECT", "ENVIRONMENT"} <= set(KNOWN)


def test_ignores_what_kubernetes_injects_for_a_service() -> None:
    injected = {
        "SESSIONSTORE_PORT": "tcp://10.0.0.1:8080",
        "SESSIONSTORE_PORT_8080_TCP_PROTO": "tcp",
        "SESSIONSTORE_SERVICE_PORT_HTTP": "8080",
        "SESSIONSTORE_REDIS_PORT": "tcp://10.0.0.2:6379",
        "SESSIONSTORE_REDIS_SERVICE_HOST": "10.0.0.2",
    }
    assert unknown_variables(injected) == []
    assert read_variable(injected, "PORT") is None
    assert read_variable({"SESSIONSTORE_PORT": "8080"}, "PORT") == "8080"
    assert read_variable({"SESSIONSTORE_TTL": ""}, "TTL") is None
