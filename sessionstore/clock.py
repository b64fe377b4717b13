"""The clock that leases are measured by."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial


def _choose() -> Callable[[], float]:
    # Linux: CLOCK_MONOTONIC stands still while the host sleeps, CLOCK_BOOTTIME does not. macOS: time.monotonic stands
    # still, and CLOCK_MONOTONIC does not. Elsewhere time.monotonic is the best there is.
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        if hasattr(time, name):
            return partial(time.clock_gettime, getattr(time, name))
    return time.monotonic


#: Seconds; runs on while the process is stopped and, where the platform has such a clock, while the host sleeps.
lease_clock = _choose()
