"""Which processes coverage measures."""

from __future__ import annotations

import os


def unmeasured() -> dict[str, str]:
    """Environment variables for a process that coverage leaves alone."""
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
