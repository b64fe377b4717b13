"""The servers of the tests: what keeps them apart, and how sentinels fail over on a machine that is busy."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..support.checkout import ROOT
from ..support.polling import await_true
from ..support.redis_sentinel import RedisSentinels
from ..support.redis_server import RedisServer, free_port
from .checker.servers import stop_for
from .conftest import slow


def test_a_server_whose_port_is_taken_does_not_start(own_redis: RedisServer) -> None:
    with pytest.raises(RuntimeError, match="Address already in use"), RedisServer(port=own_redis.port):
        pytest.fail("the tests would use another test's server")


def test_no_other_process_gives_a_port_away() -> None:
    """Given suites that run beside this one, then none takes the port of a server of this one that is down."""
    port = free_port()
    program = f"from tests.support.redis_server import reserve; print(reserve({port}))"
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert other.stdout == "False\n"


@slow
# Less than the thirty seconds for which Redis's sentinels rest.
@pytest.mark.timeout(30)
@pytest.mark.parametrize(("stopped_s", "is_given_up"), [(2.3, False), (5.5, True)])
def test_a_leader_that_stops_while_it_fails_over(
    own_sentinels: RedisSentinels, stopped_s: float, is_given_up: bool
) -> None:
    """Given a failover, when its sentinel stops for too long, then it goes on, or is asked for again."""
    before, leader = own_sentinels.primary, own_sentinels.sentinels[0]
    with ThreadPoolExecutor() as pool:
        failover = pool.submit(own_sentinels.fail_over)
        await_true(lambda: "+failover-state-wait-promotion" in leader.last_words(), "the replica is told")
        stop_for(leader.pid, stopped_s)
        failover.result()

    assert own_sentinels.primary is not before
    log = leader.last_words(100)
    assert "+tilt" in log
    assert ("-failover-abort-slave-timeout" in log) is is_given_up
    assert log.count("Executing user requested FAILOVER") == 1 + is_given_up
