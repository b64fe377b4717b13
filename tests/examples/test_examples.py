"""The examples run as their users run them, and the README shows them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sessionstore import Environment, SessionStore

from ..support.checkout import ROOT
from ..support.reader import Reader, blocks
from ..support.redis_server import RedisServer

README = ROOT / "README.md"
PROXIES = {8081: "uvicorn --app-dir examples proxy:app --port 8081", 8082: "python examples/threaded_proxy.py"}
PASSED_ON, DECLINED = {"paid": True}, {"error": "The card is declined."}
HEADER = {"x-flowmock-session": "ci-42"}

#: Rounds of PUT, proxied request and DELETE, without a pause.
ROUNDS = 500


@pytest.fixture
def reader(own_redis: RedisServer, tmp_path: Path) -> Iterator[Reader]:
    with Reader(tmp_path, own_redis.url) as reader:
        yield reader


def await_view(store: SessionStore) -> Environment:
    """Wait until the proxy's view is live."""
    staging = store.environment("checkout", "staging")
    deadline = time.monotonic() + 30
    while not staging.views():
        assert time.monotonic() < deadline, "the proxy has no view"
        time.sleep(0.02)
    return staging


@pytest.mark.parametrize(
    ("name", "language"), [("proxy.py", "python"), ("threaded_proxy.py", "python"), ("ci.sh", "sh")]
)
def test_the_readme_shows_it_whole(name: str, language: str) -> None:
    assert (ROOT / "examples" / name).read_text(encoding="utf-8") in blocks(README, language)


@pytest.mark.parametrize("port", PROXIES)
def test_a_proxy_serves_requests_before_redis_is_there_and_mocks_from_then_on(
    port: int, reader: Reader, own_redis: RedisServer
) -> None:
    # Given: a proxy that started without Redis.
    own_redis.stop()
    reader.serve(port, PROXIES[port])
    url = reader.url(port, "/pay")
    assert httpx.get(url, headers=HEADER).json() == PASSED_ON

    # When: Redis comes up, and a session gets the scenario.
    own_redis.start()
    with SessionStore.from_url(own_redis.url) as store:
        staging = await_view(store)
        reader.run("sessionstore catalog apply examples/catalog.toml")
        staging.put("ci-42", scenario="scn_paymentDeclined")

        # Then: the proxy serves the mock to this session alone.
        declined = httpx.get(url, headers=HEADER)
        assert (declined.status_code, declined.json()) == (402, DECLINED)
        assert httpx.get(url).json() == PASSED_ON
        assert httpx.get(url, headers={"x-flowmock-session": "ci-43"}).json() == PASSED_ON


@pytest.mark.parametrize("port", PROXIES)
def test_each_request_after_a_put_or_a_delete_shows_it(port: int, reader: Reader) -> None:
    reader.run("sessionstore catalog apply examples/catalog.toml")
    key = reader.run("sessionstore keys create ci --project checkout").strip()
    reader.serve(8080, "sessionstore serve", SESSIONSTORE_RATE_LIMIT="off")
    reader.serve(port, PROXIES[port])
    session = reader.url(8080, "/api/v1/sessions/ci-42")
    place = {"project": "checkout", "environment": "staging"}
    with SessionStore.from_url(reader.redis_url) as store:
        await_view(store)
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=30) as ci, httpx.Client() as app:
        for number in range(ROUNDS):
            put = ci.put(session, params=place, json={"scenario": "scn_paymentDeclined"})
            assert put.status_code == 200
            assert app.get(reader.url(port, "/pay"), headers=HEADER).json() == DECLINED, f"in round {number}"
            delete = ci.delete(session, params={**place, "mode": "delete"})
            assert delete.status_code == 200
            assert app.get(reader.url(port, "/pay"), headers=HEADER).json() == PASSED_ON, f"in round {number}"


def test_the_ci_script_runs_tests_in_a_session_and_deletes_it(reader: Reader) -> None:
    # Given: everything but a proxy.
    reader.run("sessionstore catalog apply examples/catalog.toml")
    key = reader.run("sessionstore keys create ci --project checkout").strip()
    reader.serve(8080, "sessionstore serve")
    gone = "! sessionstore get ci-42 -p checkout -e staging"

    # Then: the script fails before the tests begin.
    printed = reader.run(f"RUN=42 examples/ci.sh echo begun || echo failed; {gone}", KEY=key)
    assert '"code":"too_few_views"' in printed
    assert "begun" not in printed
    assert printed.endswith('{"ok":true,"mode":"delete"}\nfailed\n')

    # And: with a proxy, the tests find the session, and it is deleted, also after a failure.
    reader.serve(8081, PROXIES[8081])
    with SessionStore.from_url(reader.redis_url) as store:
        await_view(store)
    printed = reader.run(f"RUN=42 examples/ci.sh sessionstore get ci-42 -p checkout -e staging; {gone}", KEY=key)
    assert "scn_paymentDeclined" in printed
    printed = reader.run(f"RUN=42 examples/ci.sh false || echo failed; {gone}", KEY=key)
    assert printed.endswith('{"ok":true,"mode":"delete"}\nfailed\n')
