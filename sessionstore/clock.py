"""The clock of leases."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial


def _choose() -> Callable[[], float]:
    # On Linux, CLOCK_MONOTONIC stops while the host sleeps, and CLOCK_BOOTTIME does not. On macOS, time.monotonic
    # stops, and CLOCK_MONOTONIC does not. Other systems have only time.monotonic.
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        if hasattr(time, name):
            return partial(time.clock_gettime, getattr(time, name))
    return time.monotonic


#: Seconds. It runs while the process is stopped and, if the platform has such a clock, while the host sleeps.
lease_clock = _choose()
