"""Where mitmproxy is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

__all__ = ["require_mitmdump"]

#: An environment of its own, because mitmproxy needs an older h11 than the gateway; `make test` creates it.
_MITMDUMP = Path(sys.prefix) / "mitmproxy" / "bin" / "mitmdump"


def require_mitmdump() -> Path:
    """The path of mitmdump; without it the test is skipped, or fails under CI=true."""
    if not _MITMDUMP.exists():
        missing = f"mitmproxy is not installed in {_MITMDUMP.parents[1].name}/ of this environment; run make test"
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return _MITMDUMP
