"""A proxy of several processes, by the recipes of docs/proxies.md: each has a view of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sessionstore import Environment, SessionStore

from ..support.checkout import ROOT
from ..support.pages import shown_file
from ..support.polling import await_true
from ..support.reader import Reader, blocks
from ..support.redis_server import RedisServer

HEADER = {"x-flowmock-session": "ci-42"}
WORKERS = 4


def command(program: str) -> str:
    """The command of the page that starts a program with several workers."""
    [found] = [
        block.strip()
        for block in blocks(ROOT / "docs" / "proxies.md", "sh")
        if block.startswith(program) and f"--workers {WORKERS} " in block
    ]
    return found


@pytest.fixture
def reader(own_redis: RedisServer, tmp_path: Path) -> Iterator[Reader]:
    with Reader(tmp_path, own_redis.url) as reader:
        (tmp_path / "gunicorn.conf.py").write_text(shown_file("proxies.md", "gunicorn.conf.py"), encoding="utf-8")
        yield reader


@pytest.fixture
def staging(own_redis: RedisServer) -> Iterator[Environment]:
    with SessionStore.from_url(own_redis.url) as store:
        yield store.environment("checkout", "staging")


def pids(staging: Environment) -> set[int]:
    return {view.pid for view in staging.views()}


def check_workers(staging: Environment, process: subprocess.Popen[bytes], url: str) -> None:
    """Each worker has a view, also one that replaces another; and none is left when the server ends."""
    await_true(lambda: len(pids(staging)) == WORKERS, "a view in each worker")
    assert process.pid not in pids(staging)

    # Each request after a write sees it, whichever worker it gets to.
    with httpx.Client(headers={"connection": "close"}) as client:
        for _ in range(5):
            staging.put("ci-42", scenario="scn_paymentDeclined")
            for _ in range(2 * WORKERS):
                assert client.get(url, headers=HEADER).text != client.get(url).text
            staging.delete("ci-42")
            for _ in range(2 * WORKERS):
                assert client.get(url, headers=HEADER).text == client.get(url).text

    # A worker that is killed gets a successor, with a view.
    before = pids(staging)
    os.kill(min(before), signal.SIGKILL)
    await_true(lambda: len(pids(staging) - before) == 1 and len(pids(staging)) == WORKERS, "a view in the new worker")

    # The workers close their views when they end: no write has to wait for a lease.
    process.terminate()
    process.wait(20)
    assert staging.views() == ()


@pytest.mark.parametrize("options", ["", "--preload", "--threads 4"])
def test_gunicorn_opens_a_view_in_each_worker(options: str, reader: Reader, staging: Environment) -> None:
    process = reader.serve(8082, command("gunicorn").replace("wsgi_app:app", f"{options} wsgi_app:app"))
    check_workers(staging, process, reader.url(8082, "/pay"))


@pytest.mark.parametrize("application", ["proxy:app", "asgi_app:app"])
def test_uvicorn_opens_a_view_in_each_worker(application: str, reader: Reader, staging: Environment) -> None:
    reader.run("sessionstore catalog apply examples/catalog.toml")
    process = reader.serve(8081, command("uvicorn").replace("proxy:app", application))
    check_workers(staging, process, reader.url(8081, "/pay"))
