"""The plugin for authors of proxies: the tests in examples/proxy_tests/, run by real pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from ..support.reader import Reader
from ..support.redis_server import RedisServer, free_port

#: Two tests whose stores must not see one another's sessions; each proves that its own is reached by its variables.
ISOLATION = """
import os, subprocess, sys

import pytest

READ = '''
import os
from sessionstore import SessionStore
with SessionStore.from_url(os.environ["SESSIONSTORE_REDIS_URL"], prefix=os.environ["SESSIONSTORE_PREFIX"]) as store:
    print(*(session.session_key for session in store.environment("checkout", "staging").list().sessions))
'''

@pytest.mark.parametrize("number", range(2))
def test_own_store(session_store, session_store_env, number):
    staging = session_store.environment("checkout", "staging")
    assert staging.list().sessions == ()
    staging.put(f"ci-{number}")
    read = [sys.executable, "-c", READ]
    assert subprocess.check_output(read, env=os.environ | session_store_env, text=True).split() == [f"ci-{number}"]
"""

CONFTEST = 'pytest_plugins = ["sessionstore.contrib.pytest_plugin"]\n'


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a suite, as its author does."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "xdist",
        "-W",
        "error",
        *arguments,
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=50, check=False)


def keys(server: RedisServer) -> list[bytes]:
    with redis.Redis.from_url(server.url) as client:
        return [*client.scan_iter()]


@pytest.mark.parametrize("server", ["memory", "Redis"])
def test_the_example_tests_a_whole_proxy(server: str, own_redis: RedisServer, tmp_path: Path) -> None:
    # Given: the files of the example, and the README's proxy, which takes a prefix.
    with Reader(tmp_path, own_redis.url) as reader:
        fixtures = tmp_path / "examples" / "proxy_tests" / "conftest.py"
        fixtures.write_text(reader.placed(fixtures.read_text(encoding="utf-8")), encoding="utf-8")
    options = []
    if server == "Redis":
        proxy = tmp_path / "examples" / "proxy.py"
        source = proxy.read_text(encoding="utf-8")
        taking = source.replace("from_url(REDIS)", 'from_url(REDIS, prefix=os.environ["SESSIONSTORE_PREFIX"])')
        assert taking != source
        proxy.write_text(taking, encoding="utf-8")
        options = ["--session-store-url", own_redis.url]

    # When: the suite runs, then the proxy serves the mock, and nothing remains.
    done = run(tmp_path, "examples/proxy_tests", *options)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert keys(own_redis) == []


@pytest.mark.parametrize("source", ["memory", "option", "ini file"])
def test_each_test_has_a_store_of_its_own(source: str, own_redis: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (tmp_path / "test_suite.py").write_text(ISOLATION, encoding="utf-8")
    ini = f"session_store_url = {own_redis.url}\n" if source == "ini file" else ""
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}", encoding="utf-8")
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("somebody-elses", 1)
        done = run(tmp_path, "-n", "2", *(["--session-store-url", own_redis.url] if source == "option" else []))
        assert "2 passed" in done.stdout, done.stdout + done.stderr
        assert keys(own_redis) == [b"somebody-elses"]
        used = client.info("commandstats").get("cmdstat_unlink", {}).get("calls", 0)
        assert (used > 0) == (source != "memory")


def test_a_redis_that_is_away_is_named(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (tmp_path / "test_suite.py").write_text("def test_it(session_store): pass\n", encoding="utf-8")
    done = run(tmp_path, "--session-store-url", f"redis://localhost:{free_port()}")
    assert "1 error" in done.stdout
    assert "StoreUnavailableError" in done.stdout
