"""Fixtures to test a proxy in a process of its own. To run the tests: make test TESTS=examples/proxy_tests"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from sessionstore import Environment, SessionStore

pytest_plugins = ["sessionstore.contrib.pytest_plugin"]


@pytest.fixture
def staging(session_store: SessionStore) -> Environment:
    return session_store.environment("checkout", "staging")


@pytest.fixture
def proxy(staging: Environment, session_store_env: dict[str, str]) -> Iterator[httpx.Client]:
    command = shlex.split("-m uvicorn --app-dir examples proxy:app --port 8081")
    process = subprocess.Popen([sys.executable, *command], env=os.environ | session_store_env)
    patient = httpx.HTTPTransport(retries=6)  # until the proxy listens
    try:
        with httpx.Client(base_url="http://localhost:8081", transport=patient) as client:
            client.get("/")
            while not staging.views():
                time.sleep(0.05)
            yield client
    finally:
        process.terminate()
        process.wait()
