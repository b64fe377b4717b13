"""Schemathesis against a running gateway: the API follows its document, and nothing is answered with 500.

All of its checks and phases, links between calls included, with a fixed seed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessionstore import SessionStore

from ..support.coverage import unmeasured
from ..support.gateway import KEY
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer
from .schemathesis_hooks import CATALOG

ROOT = Path(__file__).resolve().parents[2]

#: Cases of each call in the phase "fuzzing", and runs of the state machine.
MAX_EXAMPLES = 30
SEED = "20260623"

# A call that fits the schema may name a missing project or session, or a precondition that does not hold.
CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 304, 404, 412]
"""


@pytest.fixture
def gateway(shared_redis: RedisServer, prefix: str) -> Iterator[GatewayProcess]:
    with SessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        store.project("search").apply_catalog(CATALOG)
    options = ("--prefix", prefix, "--rate-limit", "off", "--lease", "0.1", "--no-access-log")
    with GatewayProcess(shared_redis.url, *options) as gateway:
        yield gateway


@pytest.mark.timeout(180)
def test_api_is_as_its_document_says(gateway: GatewayProcess, tmp_path: Path) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration), "run"]
    command += [f"http://{gateway.host}:{gateway.port}/api/v1/openapi.json", "-H", f"Authorization: Bearer {KEY}"]
    command += ["--checks", "all", "--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure"]
    command += ["--max-examples", str(MAX_EXAMPLES), "--seed", SEED, "--no-color"]
    environment = {**unmeasured(), "SCHEMATHESIS_HOOKS": "tests.gateway.schemathesis_hooks", "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False
    )

    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    # And it has tested everything
    selected = re.search(r"Selected: (\d+)/(\d+)", report)
    links = re.search(r"API Links:\s+(\d+) covered", report)
    assert selected is not None, report
    assert selected[1] == selected[2], report
    assert links is not None, report
    assert int(links[1]) >= 8, report
    # And no request has failed in the gateway
    assert "traceback" not in gateway.log
