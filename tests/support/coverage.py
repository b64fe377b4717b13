"""Keep coverage out of some processes."""

from __future__ import annotations

import os


def unmeasured() -> dict[str, str]:
    """Environment variables of a process that coverage does not measure."""
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
