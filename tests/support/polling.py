"""Wait for a condition, with a bound that suits a slow machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["PATIENCE_S", "eventually"]

PATIENCE_S = 20.0


async def eventually(condition: Callable[[], object], what: str = "in time", timeout_s: float = PATIENCE_S) -> None:
    """Return when the condition holds. Background tasks and threads run meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.002)
