"""The guarantee under every fault there is, on a real Redis: a short run of the checker. ``make soak`` does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import require_redis_server
from .checker.plan import KINDS
from .checker.run import check

#: So that a failure can be repeated.
SEED = 1
#: In these, each fault comes up at least once.
ROUNDS = 4


@pytest.mark.timeout(400)
def test_what_is_promised_holds_under_every_fault(tmp_path: Path) -> None:
    """Given writers, gateways and views, when faults happen to all, then the history has nothing that must not be."""
    require_redis_server()
    report = check(tmp_path, SEED, ROUNDS)
    print(report)
    assert not report.violations, f"{report}\n\n{report.trace}"
    assert report.faults.keys() == {kind.name for kind in KINDS}
    # The run has looked: at fresh views and at stale ones, after writes that had waited.
    assert report.fresh > 10_000
    assert report.refused > 0
    assert report.effective > 100
