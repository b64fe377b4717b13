"""The other files of deploy/, each checked by the program that reads it, or by doing what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import yaml

from gateway.metrics import Metrics
from sessionstore import SessionStore

from ..conftest import require_redis_server
from ..support.checkout import ROOT, make_python, require_program
from ..support.gateway import AUTHORIZATION, KEY, PLACE
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import RedisServer, free_port

DEPLOY = ROOT / "deploy"
SECRET = "gateway-password"


def run(*command: str | Path, **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, "it ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def site(shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of nginx with the site's file, in front of a gateway."""
    tmp_path = tmp_path_factory.mktemp("nginx")
    nginx = require_program("nginx", "nginx-light")
    openssl = require_program("openssl", "openssl")
    crt, key, port = tmp_path / "site.crt", tmp_path / "site.key", free_port()
    run(openssl, *f"req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout {key} -out {crt}".split())
    with GatewayProcess(shared_redis.url, "--prefix", "nginx") as gateway:
        text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
        for printed, here in (
            ("127.0.0.1:8080", f"127.0.0.1:{gateway.port}"),
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/nginx/sessionstore.crt", str(crt)),
            ("/etc/nginx/sessionstore.key", str(key)),
        ):
            assert text.count(printed) == 1, printed
            text = text.replace(printed, here)
        (tmp_path / "site.conf").write_text(text, encoding="utf-8")
        places = "".join(
            f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; user root; worker_processes 1; pid {tmp_path}/pid; error_log {tmp_path}/error.log;"
            f" events {{}} http {{ access_log off; {places} include {tmp_path}/site.conf; }}",
            encoding="utf-8",
        )
        command = [
            nginx,
            "-p",
            str(tmp_path),
            "-c",
            str(tmp_path / "nginx.conf"),
            "-e",
            str(tmp_path / "error.log"),
        ]
        run(*command, "-t")
        with subprocess.Popen(command) as process:
            try:
                await_port(port, process)
                trust = ssl.create_default_context(cafile=str(crt))
                trust.check_hostname = False
                with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust, timeout=20) as client:
                    yield client
            finally:
                process.terminate()


class TestNginx:
    @pytest.mark.parametrize(
        "key", ["ci%2F42", "%2F%2Fci", "a%2F..%2Fb", "ci%2042", "gr%C3%BC%C3%9Fe", "%25", "a%3Fb", "ci-42"]
    )
    def test_passes_each_session_key_as_it_is(self, key: str, site: httpx.Client) -> None:
        url = f"/api/v1/sessions/{key}"

        put = site.put(url, params=PLACE, headers=AUTHORIZATION, json={"label": "by nginx"})

        assert put.status_code == 200, put.text
        assert put.json()["sessionKey"] == unquote(key)
        assert site.get(url, params=PLACE, headers=AUTHORIZATION).json() == put.json()

    @pytest.mark.parametrize("path", ["/metrics", "//metrics", "/%6Detrics", "/x/../metrics", "/metrics?x=1"])
    def test_shows_no_metrics(self, path: str, site: httpx.Client) -> None:
        # As it stands: joined to the address, two slashes would begin a host.
        answer = site.get(site.base_url.copy_with(raw_path=path.encode()))
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"

    def test_leaves_errors_and_health_to_the_gateway(self, site: httpx.Client) -> None:
        assert site.get("/readyz").json()["status"] == "ok"
        big = site.put("/api/v1/sessions/a", params=PLACE, headers=AUTHORIZATION, json={"label": "x" * 70_000})
        assert (big.status_code, big.json()["code"]) == (413, "body_too_large")


class TestPrometheus:
    @pytest.fixture
    def promtool(self) -> str:
        return require_program("promtool", "prometheus")

    def test_promtool_accepts_the_rules(self, promtool: str) -> None:
        assert f"{len(self.rules())} rules found" in run(promtool, "check", "rules", DEPLOY / "alerts.yaml")

    def test_the_rules_fire_where_they_should(self, promtool: str) -> None:
        assert "SUCCESS" in run(promtool, "test", "rules", Path(__file__).parent / "alerts_test.yaml")

    def test_each_rule_has_a_case(self) -> None:
        cases = yaml.safe_load((Path(__file__).parent / "alerts_test.yaml").read_text(encoding="utf-8"))
        tried = {check["alertname"] for case in cases["tests"] for check in case["alert_rule_test"]}
        assert tried == {rule["alert"] for rule in self.rules()}

    def test_the_rules_name_metrics_that_exist(self) -> None:
        exist = {"up"}
        for family in Metrics()._registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
            exist |= {family.name + suffix for suffix in suffixes}
        for rule in self.rules():
            named = set(re.findall(r"\b(?:sessionstore_\w+|up)\b", rule["expr"]))
            assert named
            assert named <= exist, rule["alert"]

    def rules(self) -> list[dict[str, Any]]:
        [group] = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
        rules: list[dict[str, Any]] = group["rules"]
        return rules


class TestSystemd:
    @pytest.fixture
    def unit(self, tmp_path: Path) -> Path:
        """The unit, with the command where it is here."""
        text = (DEPLOY / "sessionstore.service").read_text(encoding="utf-8")
        assert text.count("/opt/sessionstore/bin/") == 1
        unit = tmp_path / "sessionstore.service"
        unit.write_text(text.replace("/opt/sessionstore/bin/", f"{Path(sys.executable).parent}/"), encoding="utf-8")
        return unit

    def test_systemd_accepts_the_unit(self, unit: Path) -> None:
        assert run(require_program("systemd-analyze", "systemd"), "verify", unit) == ""

    def test_the_unit_gives_little_away(self, unit: Path) -> None:
        analyze = require_program("systemd-analyze", "systemd")
        run(analyze, "security", "--no-pager", "--offline=true", "--threshold=20", unit)

    def test_the_command_serves(self, unit: Path, shared_redis: RedisServer, prefix: str) -> None:
        port = free_port()
        [command] = re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
        with serving(command.split(), port, shared_redis.url, SESSIONSTORE_PREFIX=prefix):
            pass


@contextmanager
def serving(command: list[str], port: int, redis_url: str, **variables: str) -> Iterator[None]:
    """Run a command that serves the gateway; it must accept a PUT, and end with 0."""
    environ = {
        **os.environ,
        "SESSIONSTORE_PORT": str(port),
        "SESSIONSTORE_REDIS_URL": redis_url,
        "SESSIONSTORE_API_KEY": KEY,
        **variables,
    }
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            await_port(port, process)
            url = f"http://127.0.0.1:{port}"
            assert httpx.get(f"{url}/readyz", timeout=20).status_code == 200
            put = httpx.put(f"{url}/api/v1/sessions/a", params=PLACE, headers=AUTHORIZATION, json={}, timeout=20)
            assert put.status_code == 200
            yield
        finally:
            process.terminate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments."""
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if not line.startswith("#"))]


@pytest.fixture(scope="module")
def image(instructions: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of a container: COPY, ENV and RUN are done in an empty environment of Python."""
    folder = tmp_path_factory.mktemp("image")
    environ = {"PATH": f"{make_python(folder / 'python')}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    (folder / "app").mkdir()
    for name, rest in instructions:
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, folder / "app" / target)
                else:
                    shutil.copy(ROOT / source, folder / "app" / target)
        elif name == "ENV":
            environ |= dict(pair.split("=", 1) for pair in rest.split())
        elif name == "RUN":
            run("bash", "-euc", rest, cwd=folder / "app", env=environ)
    return environ


@pytest.mark.timeout(240)
class TestDocker:
    def test_the_container_serves_and_tells_its_health(
        self, instructions: list[tuple[str, str]], image: dict[str, str], shared_redis: RedisServer, prefix: str
    ) -> None:
        arguments = dict(instructions)
        port = free_port()
        check = json.loads(arguments["HEALTHCHECK"].partition(" CMD ")[2])
        check = [word.replace("8080", str(port)) for word in check]
        check[0] = shutil.which(check[0], path=image["PATH"])

        def is_healthy() -> bool:
            return subprocess.run(check, env=image, capture_output=True, timeout=30, check=False).returncode == 0

        command = json.loads(arguments["ENTRYPOINT"]) + json.loads(arguments["CMD"])
        command[0] = shutil.which(command[0], path=image["PATH"])
        assert command[0].startswith(image["PATH"].split(os.pathsep)[0])
        assert not is_healthy()
        with serving(command, port, shared_redis.url, **image, SESSIONSTORE_PREFIX=prefix):
            assert is_healthy()

    def test_the_container_is_slim_and_not_root(self, instructions: list[tuple[str, str]]) -> None:
        arguments = dict(instructions)
        assert re.fullmatch(r"python:3\.1[123]-slim", arguments["FROM"])
        assert int(arguments["USER"].partition(":")[0]) > 0
        assert instructions.index(("USER", arguments["USER"])) < [name for name, _ in instructions].index("ENTRYPOINT")

    def test_composes_redis_keeps_what_was_written_and_lets_the_gateway_in(self, tmp_path: Path) -> None:
        require_redis_server()
        services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
        program, *words = services["redis"]["command"]
        assert program == "redis-server"
        options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
        [mounted] = [volume for volume in services["redis"]["volumes"] if volume.startswith("./")]
        file, _, there = mounted.partition(":")
        assert there == f"{options['aclfile']}:ro"
        options["aclfile"] = str(DEPLOY / file)
        with RedisServer(**options) as server:
            url = services["gateway"]["environment"]["SESSIONSTORE_REDIS_URL"]
            url = re.sub(r"\$\{GATEWAY_PASSWORD:.*?\}", SECRET, url).replace("@redis:6379", f"@127.0.0.1:{server.port}")
            with SessionStore.from_url(url) as store:
                store.environment("checkout", "staging").put("ci-42", label="kept")
            server.kill()
            server.start()
            with SessionStore.from_url(url) as store:
                session = store.environment("checkout", "staging").get("ci-42")
                assert session is not None
                assert session.label == "kept"

    def test_compose_builds_the_dockerfile_and_publishes_its_port(self, instructions: list[tuple[str, str]]) -> None:
        gateway = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["gateway"]
        context = (DEPLOY / gateway["build"]["context"]).resolve()
        assert (context / gateway["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
        assert gateway["ports"] == [f"127.0.0.1:8080:{dict(instructions)['EXPOSE']}"]
