"""What Redis itself spends: its own count of its CPU time, so it does not matter how slow its clients are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis

__all__ = ["seconds_of_redis", "share_of_core"]


def seconds_of_redis(client: redis.Redis, run: Callable[[int], object], numbers: range) -> float:
    """CPU time that Redis takes for ``run(number)`` of each number, in seconds."""
    before = _cpu_s(client)
    for number in numbers:
        run(number)
    return _cpu_s(client) - before


def share_of_core(client: redis.Redis, seconds: float) -> float:
    """The percentage of a core that Redis takes meanwhile."""
    before, began = _cpu_s(client), time.monotonic()
    time.sleep(seconds)
    return 100 * (_cpu_s(client) - before) / (time.monotonic() - began)


def _cpu_s(client: redis.Redis) -> float:
    """CPU time that Redis has taken so far."""
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
