"""The addon in mitmproxy: a PUT to a gateway, then a request through the proxy."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from sessionstore import SessionStore

from ..support.checkout import ROOT
from ..support.gateway import AUTHORIZATION, PLACE
from ..support.gateway_process import GatewayProcess
from ..support.mitmproxy import require_mitmdump
from ..support.redis_server import RedisServer, free_port

#: Answers each request with the session that it names, in place of a server.
ADDON = """
import json

from mitmproxy import http

from sessionstore.contrib.mitmproxy import SessionStoreAddon


class Mocks:
    def request(self, flow):
        session = flow.metadata["mock_session"]
        state = "null" if session is None else session.to_json()
        flow.response = http.Response.make(200, state, {"content-type": "application/json"})


addons = [SessionStoreAddon(), Mocks()]
"""

#: Passes each request on to its server.
NO_MOCKS = """
from sessionstore.contrib.mitmproxy import SessionStoreAddon

addons = [SessionStoreAddon()]
"""

_LISTENING = re.compile(r"listening at (?:http://)?(?:\*|127\.0\.0\.1):(\d+)")


@pytest.fixture
def mitmdump() -> str:
    return str(require_mitmdump())


class Proxy:
    def __init__(self, port: int, log: Any) -> None:
        self.client = httpx.Client(proxy=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        self._log = log

    def session(self, key: str | None, url: str = "http://shop.example/pay") -> Any:
        """The response to a request that names a session."""
        headers = {} if key is None else {"x-flowmock-session": key}
        answer = self.client.get(url, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def log(self) -> str:
        self._log.seek(0)
        text: str = self._log.read().decode()
        return text


@contextmanager
def run_proxy(
    mitmdump: str, folder: Path, addon: str = ADDON, variables: Mapping[str, str] = MappingProxyType({}), **options: str
) -> Iterator[Proxy]:
    """Run mitmdump on a free port, with certificates and settings in `folder`."""
    script = folder / "mocks.py"
    script.write_text(addon)
    command = [mitmdump, "--listen-host", "127.0.0.1", "--listen-port", "0", "--scripts", str(script)]
    # Lazy: the addon answers, so mitmproxy must not connect to a server.
    for name, value in {"confdir": str(folder), "connection_strategy": "lazy", **options}.items():
        command += ["--set", f"{name}={value}"]
    with tempfile.TemporaryFile() as output:
        # Unbuffered: otherwise the line that names the port stays in mitmdump's buffer.
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
        proxy = None
        try:
            proxy = Proxy(await_port(process, output), output)
            yield proxy
        finally:
            if proxy is not None:
                proxy.client.close()
            process.terminate()
            assert process.wait(30) is not None


def await_port(process: subprocess.Popen[bytes], output: Any) -> int:
    deadline = time.monotonic() + 60
    while True:
        output.seek(0)
        text = output.read().decode()
        if match := _LISTENING.search(text):
            return int(match[1])
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


@pytest.mark.parametrize("servers", ["shared_redis", "shared_cluster"])
def test_a_request_gets_the_state_of_the_last_put(
    mitmdump: str, request: pytest.FixtureRequest, servers: str, tmp_path: Path
) -> None:
    # Given a gateway and a mitmproxy on one Redis or a cluster
    url = request.getfixturevalue(servers).url
    project = f"p{os.getpid()}"
    place = {**PLACE, "project": project}
    with (
        GatewayProcess(url) as gateway,
        run_proxy(
            mitmdump,
            tmp_path,
            sessionstore_url=url,
            sessionstore_project=project,
            sessionstore_environment=place["environment"],
            sessionstore_delay="true",
        ) as proxy,
        SessionStore.from_url(url) as store,
        httpx.Client(
            base_url=f"http://127.0.0.1:{gateway.port}/api/v1/sessions",
            headers=AUTHORIZATION,
            params=place,
            timeout=30,
            trust_env=False,
        ) as api,
    ):
        staging = store.environment(project, place["environment"])
        deadline = time.monotonic() + 30
        while not staging.views():
            assert time.monotonic() < deadline, proxy.log
            time.sleep(0.02)
        assert proxy.session("ci-42") is None

        # When a PUT returns, again and again
        for number in range(60):
            body = {"label": f"run {number}", "overrides": [f"ovr_{number}"]}
            answer = api.put("/ci-42", json=body)
            assert answer.status_code == 200, answer.text

            # Then the next request has its state at once, and another session does not
            assert proxy.session("ci-42") == answer.json()
            assert proxy.session("ci-43") is None
            assert proxy.session(None) is None

        # And the proxy applies the session's delay
        api.put("/ci-42", json={"globalDelayMs": 300})
        begun = time.monotonic()
        assert proxy.session("ci-42")["globalDelayMs"] == 300
        assert time.monotonic() - begun >= 0.3

        # And a deleted session is missing
        api.delete("/ci-42", params={**place, "mode": "delete"})
        assert proxy.session("ci-42") is None
    # The proxy has closed its view, so no writer waits for it.
    with SessionStore.from_url(url) as store:
        assert store.environment(project, place["environment"]).views() == ()


@pytest.mark.parametrize("forward", [False, True])
def test_the_header_reaches_the_server_only_if_asked_for(
    mitmdump: str, shared_redis: RedisServer, prefix: str, tmp_path: Path, forward: bool
) -> None:
    received: list[list[str] | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.headers.get_all("x-flowmock-session"))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    options = {
        "sessionstore_url": shared_redis.url,
        "sessionstore_prefix": prefix,
        "sessionstore_project": "checkout",
        "sessionstore_environment": "staging",
        **({"sessionstore_forward_header": "true"} if forward else {}),
    }
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with run_proxy(mitmdump, tmp_path, NO_MOCKS, {}, **options) as proxy:
            url = f"http://127.0.0.1:{server.server_port}/pay"
            headers = [("X-Flowmock-Session", "ci-42"), ("x-flowmock-session", "ci-43")]
            assert proxy.client.get(url, headers=headers).status_code == 204
        server.shutdown()

    assert received == [["ci-42", "ci-43"] if forward else None]


def test_the_example_answers_by_scenario_and_reads_its_settings_from_the_environment(
    mitmdump: str, shared_redis: RedisServer, prefix: str, tmp_path: Path
) -> None:
    example = (ROOT / "examples" / "mitmproxy_addon.py").read_text(encoding="utf-8")
    variables = {
        "SESSIONSTORE_REDIS_URL": shared_redis.url,
        "SESSIONSTORE_PROJECT": "checkout",
        "SESSIONSTORE_ENVIRONMENT": "staging",
        "SESSIONSTORE_PREFIX": prefix,
        "SESSIONSTORE_TTL": "5000",
        "SESSIONSTORE_LEASE": "3",
    }
    with SessionStore.from_url(shared_redis.url, prefix=prefix, ttl_s=1000, lease_s=3) as store:
        catalog = tomllib.loads((ROOT / "examples" / "catalog.toml").read_text(encoding="utf-8"))
        store.project("checkout").apply_catalog(catalog)
        staging = store.environment("checkout", "staging")
        with run_proxy(mitmdump, tmp_path, example, variables) as proxy:
            deadline = time.monotonic() + 30
            while not staging.views():
                assert time.monotonic() < deadline, proxy.log
                time.sleep(0.02)
            url = f"http://127.0.0.1:{free_port()}/"

            # A mock that its scenario switches on
            session = staging.put("ci-42", scenario="scn_paymentDeclined")
            assert proxy.client.get(url, headers={"x-flowmock-session": "ci-42"}).status_code == 402
            # and one that is off
            staging.put("ci-42", scenario=None)
            assert proxy.client.get(url, headers={"x-flowmock-session": "ci-42"}).status_code == 502
        # The proxy's TTL holds for looked-up sessions: it touched them when it closed.
        assert staging.get("ci-42").expires_at - session.expires_at > 3_900_000  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {
                "sessionstore_project": "checkout",
                "sessionstore_environment": "staging",
                "sessionstore_lease": "x",
            },
            ["sessionstore: sessionstore_lease must be a time, such as 90s, 30m, 12h or 1d."],
        ),
        (
            {"sessionstore_environment": "staging"},
            ["sessionstore: name the environment", "sessionstore_project"],
        ),
        (
            {"sessionstore_project": "checkout", "sessionstore_environment": "a b"},
            ["sessionstore: The environment is not a slug"],
        ),
        (
            {
                "sessionstore_project": "checkout",
                "sessionstore_environment": "staging",
                "sessionstore_url": "http://user:hunter2@localhost",
            },
            ["sessionstore: A Redis URL is"],
        ),
    ],
)
def test_invalid_options_end_mitmproxy_with_a_message(
    mitmdump: str, tmp_path: Path, options: dict[str, str], words: list[str]
) -> None:
    script = tmp_path / "mocks.py"
    script.write_text(ADDON)
    command = [mitmdump, "--listen-host", "127.0.0.1", "--listen-port", "0", "--set", f"confdir={tmp_path}"]
    settings = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]

    result = subprocess.run(
        [*command, "--scripts", str(script), *settings],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    said = result.stdout + result.stderr
    assert result.returncode == 1, said
    for word in words:
        assert word in said
    assert "hunter2" not in said
