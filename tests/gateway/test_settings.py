"""Options and environment variables."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.__main__ import main
from gateway.settings import parse_settings
from sessionstore import SessionStore
from sessionstore.api_keys.model import is_secret
from sessionstore.variables import KNOWN, unknown_variables

from ..support.gateway import KEY
from ..support.gateway_process import GatewayProcess, run_gateway
from ..support.redis_server import RedisServer, free_port


class TestOptions:
    def test_help_names_every_option_and_variable(self) -> None:
        done = run_gateway("--help")

        assert done.returncode == 0
        assert done.stderr == ""
        for name in (
            "host",
            "port",
            "redis-url",
            "embedded-socket",
            "prefix",
            "ttl",
            "lease",
            "deadline",
            "shutdown-grace",
            "key-grace",
            "rate-limit",
            "max-connections",
            "replicas",
            "max-sessions",
            "max-project-bytes",
            "max-environments",
            "metrics",
            "log-level",
            "no-access-log",
            "embedded",
        ):
            assert f"--{name}" in done.stdout
        for text in ("SESSIONSTORE_REDIS_URL", "SESSIONSTORE_API_KEY", "127.0.0.1", "8080", "1d"):
            assert text in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "variables", "words"),
        [
            (["--prot", "8080"], {}, ["--prot"]),
            (["--por", "8080"], {}, ["--por"]),
            (["extra"], {}, ["extra"]),
            (["--port", "http"], {}, ["--port", "65535"]),
            (["--port", "65536"], {}, ["--port", "65535"]),
            ([], {"SESSIONSTORE_PORT": "http"}, ["SESSIONSTORE_PORT", "65535"]),
            (["--log-level", "loud"], {}, ["--log-level", "warning"]),
            (["--ttl", "0"], {}, ["--ttl", "a time from 1s to 366d"]),
            (["--ttl", "0.999"], {}, ["--ttl", "from 1s"]),
            (["--ttl", "1y"], {}, ["--ttl", "30m"]),
            (["--deadline", "nan"], {}, ["--deadline", "0.05s to 1m"]),
            ([], {"SESSIONSTORE_ACCESS_LOG": "maybe"}, ["SESSIONSTORE_ACCESS_LOG", "on or off"]),
            (["--redis-url", "http://user:s3cret@localhost"], {}, ["--redis-url", "redis://"]),
            (["--redis-url", "redis://:s3cret@localhost:port"], {}, ["--redis-url", "redis://"]),
            (["--rate-limit", "often"], {}, ["--rate-limit", "6000/60"]),
            (["--key-grace", "0.9"], {}, ["--key-grace", "from 1s to 1d"]),
            (["--max-connections", "0"], {}, ["--max-connections", "from 1"]),
            (["--replicas", "11"], {}, ["--replicas", "a whole number from 0 to 10"]),
            ([], {"SESSIONSTORE_REPLICAS": "one"}, ["SESSIONSTORE_REPLICAS", "a whole number from 0 to 10"]),
            (["--redis-url", "redis://localhost?replicas=11"], {}, ["--redis-url", "a whole number from 0 to 10"]),
            (["--redis-url", "redis://localhost?replicas=1&replicas=1"], {}, ["--redis-url", "given once"]),
            (["--embedded", "--replicas", "1"], {}, ["--replicas", "--embedded"]),
            (["--max-sessions", "0"], {}, ["--max-sessions", "from 1, or off"]),
            ([], {"SESSIONSTORE_MAX_PROJECT_BYTES": "1e9"}, ["SESSIONSTORE_MAX_PROJECT_BYTES", "from 1, or off"]),
            (["--max-environments", str(2**53)], {}, ["--max-environments", "from 1, or off"]),
            (["--embedded"], {"SESSIONSTORE_API_KEY": "fmk_s3cret"}, ["SESSIONSTORE_API_KEY", "43"]),
            (["--prefix", "a:b"], {}, ["--prefix"]),
            (["--embedded-socket", "--redis-url", "redis://localhost"], {}, ["--embedded-socket", "--redis-url"]),
            ([], {}, ["--redis-url", "SESSIONSTORE_REDIS_URL", "--embedded"]),
            ([], {"REDIS_URL": "redis://localhost"}, ["SESSIONSTORE_REDIS_URL"]),
            (
                [],
                {"SESSIONSTORE_REDIS": "redis://localhost"},
                ["SESSIONSTORE_REDIS is", "mean SESSIONSTORE_REDIS_URL?"],
            ),
            (["--embedded", "--redis-url", "redis://localhost"], {}, ["choose one"]),
            ([], {"SESSIONSTORE_EMBEDDED": "on", "SESSIONSTORE_REDIS_URL": "redis://localhost"}, ["choose one"]),
        ],
        ids=str,
    )
    def test_invalid_value_is_refused_with_a_sentence(
        self,
        arguments: list[str],
        variables: dict[str, str],
        words: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

        code = main(arguments)

        output, errors = capsys.readouterr()
        assert code == 2
        assert output == ""
        assert "s3cret" not in errors
        for word in words:
            assert word in errors

    def test_redis_without_any_key_is_refused_and_the_command_that_it_names_makes_one(
        self, shared_redis: RedisServer, prefix: str
    ) -> None:
        done = run_gateway("--redis-url", shared_redis.url, "--prefix", prefix, "--port", "0")
        assert done.returncode == 1
        assert "sessionstore keys create" in done.stderr
        command = re.search(r"export SESSIONSTORE_API_KEY=.*", done.stderr)
        assert command is not None

        made = subprocess.run(
            ["sh", "-c", f'{command[0]}; printf %s "$SESSIONSTORE_API_KEY"'],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )

        assert is_secret(made.stdout)

    def test_port_in_use_is_one_clear_sentence(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])

            done = run_gateway("--embedded", "--port", port)

        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        for word in ("127.0.0.1", port, "in use", "--port"):
            assert word in done.stderr

    def test_variables_stand_for_options_and_options_win(self, shared_redis: RedisServer) -> None:
        variables = {
            "SESSIONSTORE_REDIS_URL": shared_redis.url,
            "SESSIONSTORE_PREFIX": "variables",
            "SESSIONSTORE_API_KEY": KEY,
            "SESSIONSTORE_PORT": str(free_port()),
            "SESSIONSTORE_HOST": "localhost",
            "SESSIONSTORE_ACCESS_LOG": "off",
            "SESSIONSTORE_TTL": "",
        }
        with GatewayProcess("", **variables) as gateway, gateway.client() as client:
            assert str(gateway.port) != variables["SESSIONSTORE_PORT"]  # --port 0 wins over the variable
            assert client.put("/sessions/a", json={}).status_code == 200
            assert gateway.output == ""
            assert "gateway.access" not in gateway.log
        with SessionStore.from_url(shared_redis.url, prefix="variables") as store:
            session = store.environment("checkout", "staging").get("a")
        assert session is not None
        assert session.expires_at - session.created_at == 86_400_000

    @pytest.mark.parametrize(
        ("arguments", "variables", "embedded"),
        [
            (["--embedded"], {"SESSIONSTORE_REDIS_URL": "redis://localhost"}, True),
            (["--redis-url", "redis://localhost"], {"SESSIONSTORE_EMBEDDED": "on"}, False),
            ([], {"SESSIONSTORE_EMBEDDED": "on"}, True),
        ],
    )
    def test_an_option_for_the_store_wins_over_the_other_variable(
        self, arguments: list[str], variables: dict[str, str], embedded: bool
    ) -> None:
        settings = parse_settings(arguments, variables, "gateway")
        assert (settings.redis_url is None) is embedded

    def test_a_time_takes_a_unit(self) -> None:
        settings = parse_settings(["--embedded", "--ttl", "1d", "--lease", "1.5s"], {}, "gateway")
        assert (settings.ttl_s, settings.lease_s) == (86_400, 1.5)

    def test_the_port_that_kubernetes_injects_is_ignored(self) -> None:
        variables = {
            "SESSIONSTORE_PORT": "tcp://10.0.0.1:80",
            "SESSIONSTORE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
            "SESSIONSTORE_PORT_8080_TCP_ADDR": "10.0.0.1",
            "SESSIONSTORE_SERVICE_HOST": "10.0.0.1",
            "SESSIONSTORE_SERVICE_PORT": "80",
            "SESSIONSTORE_SERVICE_PORT_HTTP": "80",
        }
        assert parse_settings(["--embedded"], variables, "gateway").port == 8080
        assert unknown_variables(variables) == []

    def test_every_variable_of_the_gateway_is_known(self) -> None:
        variables = {"SESSIONSTORE_API_KEY", *(f"SESSIONSTORE_{name}" for name in KNOWN)}
        for option in re.findall(r"--(?!no-|help)([a-z-]+)", run_gateway("--help").stdout):
            assert "SESSIONSTORE_" + option.upper().replace("-", "_") in variables

    def test_an_unknown_variable_is_a_warning_that_names_the_nearest(self) -> None:
        with GatewayProcess(None, SESSIONSTORE_RATELIMIT="5/1") as gateway:
            log = gateway.log
        assert log.count("SESSIONSTORE_RATELIMIT") == 1
        assert "did you mean SESSIONSTORE_RATE_LIMIT?" in log
        assert '"level":"warning"' in log

    def test_a_missing_package_is_one_sentence(self, tmp_path: Path) -> None:
        # Given an environment without Starlette
        (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('no starlette', name='starlette')")
        done = run_gateway("--embedded", PYTHONPATH=f"{tmp_path}{os.pathsep}{Path.cwd()}")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "The gateway needs starlette; install sessionstore[gateway].\n"
