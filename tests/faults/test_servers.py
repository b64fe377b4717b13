"""The servers of the tests: what keeps those of tests that run at the same time apart."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..support.checkout import ROOT
from ..support.redis_server import RedisServer, free_port


def test_a_server_whose_port_is_taken_does_not_start(own_redis: RedisServer) -> None:
    with pytest.raises(RuntimeError, match="Address already in use"), RedisServer(port=own_redis.port):
        pytest.fail("the tests would use another test's server")


def test_no_other_process_gives_a_port_away() -> None:
    """Given suites that run beside this one, then none takes the port of a server of this one that is down."""
    port = free_port()
    program = f"from tests.support.redis_server import reserve; print(reserve({port}))"
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert other.stdout == "False\n"
