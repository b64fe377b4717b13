"""Whole runs of a suite with pytest-xdist, through the gateway with its default rate limit and the README's proxy."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sessionstore import Environment, SessionStore

from ..conftest import require_redis_server
from ..support.coverage import unmeasured
from ..support.reader import Reader
from ..support.redis_server import RedisServer

#: Seconds that a run may take on a busy machine; alone, it takes a tenth.
PATIENCE_S = 90
pytestmark = pytest.mark.timeout(120)

SUITE = """
    import os, signal, time

    import httpx
    import pytest

    proxy = httpx.Client(base_url=os.environ["PROXY"])

    @pytest.mark.parametrize("number", range(int(os.environ["TESTS"])))
    def test_payment(mock_session, number):
        def pay():
            return proxy.get("/pay", headers=mock_session.headers).status_code

        assert pay() == 200
        mock_session.put(scenario="scn_paymentDeclined")
        assert pay() == 402
        if number == 10 and "KILL" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 10 and "INTERRUPT" in os.environ:
            os.killpg(0, signal.SIGINT)  # as Ctrl-C does: to every process of the run
            time.sleep(20)
        mock_session.put(scenario=None)
        assert pay() == 200
"""


@dataclass
class Staging:
    """A gateway, a proxy with a view, and a suite's folder."""

    reader: Reader
    environment: Environment
    key: str

    def run(self, pytester: pytest.Pytester, *arguments: str, **variables: str) -> str:
        """Run the suite with real pytest; return what it prints."""
        pytester.makepyfile(test_suite=textwrap.dedent(SUITE))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "sessionstore.client.pytest_plugin", *arguments],
            cwd=pytester.path,
            env={
                **unmeasured(),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "SESSIONSTORE_URL": self.reader.url(8080, ""),
                "SESSIONSTORE_API_KEY": self.key,
                "SESSIONSTORE_ENVIRONMENT": "staging",
                "PROXY": self.reader.url(8081, ""),
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            start_new_session=True,
            check=False,
        )
        return done.stdout

    def left(self) -> list[str]:
        """The keys of the sessions that runs have left."""
        return [session.session_key for session in self.environment.list(100).sessions]


@pytest.fixture(scope="module")
def staging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staging]:
    require_redis_server()
    with (
        RedisServer() as redis,
        Reader(tmp_path_factory.mktemp("staging") / "reader", redis.url) as reader,
        SessionStore.from_url(redis.url) as store,
    ):
        reader.run("sessionstore catalog apply examples/catalog.toml")
        key = reader.run("sessionstore keys create ci --project checkout").strip()
        reader.serve(8080, "sessionstore serve")
        reader.serve(8081, "uvicorn --app-dir examples proxy:app --port 8081")
        environment = store.environment("checkout", "staging")
        deadline = time.monotonic() + PATIENCE_S
        while not environment.views():
            assert time.monotonic() < deadline, "the proxy has no view"
            time.sleep(0.02)
        yield Staging(reader, environment, key)


def test_300_tests_of_4_workers_each_with_its_own_session(staging: Staging, pytester: pytest.Pytester) -> None:
    printed = staging.run(pytester, "-n4", "--mock-session-views=1", TESTS="300")
    assert "300 passed" in printed, printed
    assert "mock sessions" not in printed
    assert staging.left() == []


def test_the_session_of_a_killed_worker_is_deleted(staging: Staging, pytester: pytest.Pytester) -> None:
    printed = staging.run(pytester, "-n2", TESTS="40", KILL="1")
    assert "1 failed, 39 passed" in printed, printed
    assert staging.left() == []


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_an_interrupted_run_leaves_no_session(
    staging: Staging, pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    printed = staging.run(pytester, *workers, TESTS="40", INTERRUPT="1")
    assert "KeyboardInterrupt" in printed, printed
    assert staging.left() == []
