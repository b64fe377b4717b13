"""The guarantee under faults, on a real Redis, cluster and Sentinel: short runs of the checker.

``make soak`` runs longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import require_redis_server
from .checker.cluster import ClusterServers
from .checker.plan import KINDS
from .checker.run import check
from .checker.sentinel import SentinelServers

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


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("servers", "faults"),
    [
        (ClusterServers, {"slot-migrated", "primary-cut-off", "view-killed", "view-network-hole", "gateway-killed"}),
        (SentinelServers, {"orderly-failover", "view-killed", "gateway-killed"}),
    ],
)
def test_the_guarantee_holds_while_primaries_change(
    tmp_path: Path, servers: type[ClusterServers | SentinelServers], faults: set[str]
) -> None:
    """Given a view and a writer of each driver, and a gateway, when primaries change, then there is no violation."""
    require_redis_server()
    kinds = [kind for kind in servers.kinds if kind.name in faults]
    report = check(tmp_path, SEED, 1, servers=servers, kinds=kinds, views=2, gateways=1)
    print(report)
    assert not report.violations, f"{report}\n\n{report.trace}"
    assert report.faults.keys() == faults
    assert report.fresh > 5_000
    assert report.refused > 0
    assert report.effective > 50
