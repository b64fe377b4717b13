"""Wait for a condition, with a bound that suits a slow machine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

__all__ = ["PATIENCE_S", "await_true", "eventually"]

PATIENCE_S = 20.0


async def eventually(condition: Callable[[], object], what: str = "in time", timeout_s: float = PATIENCE_S) -> None:
    """Return when the condition holds. Background tasks and threads run meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.002)


def await_true(
    condition: Callable[[], object],
    what: str,
    *,
    ignore: type[Exception] | None = None,
    timeout_s: float = PATIENCE_S,
) -> None:
    """Return when the condition holds, for code without an event loop. Errors of the class `ignore` count as false."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(*[ignore] if ignore else []):
            if condition():
                return
        assert time.monotonic() < deadline, f"{what} within {timeout_s:g} s"
        time.sleep(0.02)
