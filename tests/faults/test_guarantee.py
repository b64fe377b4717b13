"""The guarantee under every kind of fault, on a real Redis: a short run of the checker. ``make soak`` is longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import require_redis_server
from .checker.plan import KINDS
from .checker.run import check

#: Fixed, so that a failure can be repeated.
SEED = 1
#: Enough for each kind of fault.
ROUNDS = 4


@pytest.mark.timeout(400)
def test_the_guarantee_holds_under_every_fault(tmp_path: Path) -> None:
    """Given writers, gateways and views, when faults hit all of them, then the history shows no violation."""
    require_redis_server()
    report = check(tmp_path, SEED, ROUNDS)
    print(report)
    assert not report.violations, f"{report}\n\n{report.trace}"
    assert report.faults.keys() == {kind.name for kind in KINDS}
    # The run checked something: look-ups of fresh and stale views, after writes that had waited.
    assert report.fresh > 10_000
    assert report.refused > 0
    assert report.effective > 100
