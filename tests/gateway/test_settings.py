"""Options and environment variables."""

from __future__ import annotations

import re
import socket
import subprocess

import pytest

from gateway.__main__ import main
from sessionstore import SessionStore
from sessionstore.api_keys.model import is_secret

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
            "rate-limit",
            "max-connections",
            "metrics",
            "log-level",
            "no-access-log",
        ):
            assert f"--{name}" in done.stdout
        for text in ("SESSIONSTORE_REDIS_URL", "SESSIONSTORE_API_KEY", "127.0.0.1", "8080", "86400"):
            assert text in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "variables", "words"),
        [
            (["--prot", "8080"], {}, ["--prot"]),
            (["--por", "8080"], {}, ["--por"]),
            (["extra"], {}, ["extra"]),
            (["--port", "http"], {}, ["--port", "65535"]),
            (["--port", "65536"], {}, ["--port", "65535"]),
            ([], {"SESSIONSTORE_PORT": "tcp://10.0.0.1:80"}, ["SESSIONSTORE_PORT", "65535"]),
            (["--log-level", "loud"], {}, ["--log-level", "warning"]),
            (["--ttl", "0"], {}, ["--ttl", "seconds"]),
            (["--ttl", "0.999"], {}, ["--ttl", "seconds from 1 to"]),
            (["--deadline", "nan"], {}, ["--deadline", "0.05 to 60"]),
            ([], {"SESSIONSTORE_ACCESS_LOG": "maybe"}, ["SESSIONSTORE_ACCESS_LOG", "on or off"]),
            (["--redis-url", "http://user:s3cret@localhost"], {}, ["--redis-url", "redis://"]),
            (["--redis-url", "redis://:s3cret@localhost:port"], {}, ["--redis-url", "redis://"]),
            (["--rate-limit", "often"], {}, ["--rate-limit", "120/60"]),
            (["--max-connections", "0"], {}, ["--max-connections", "from 1"]),
            ([], {"SESSIONSTORE_API_KEY": "fmk_s3cret"}, ["SESSIONSTORE_API_KEY", "43"]),
            (["--prefix", "a:b"], {}, ["--prefix"]),
            (["--embedded-socket", "--redis-url", "redis://localhost"], {}, ["--embedded-socket", "--redis-url"]),
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

            done = run_gateway("--port", port)

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
        with GatewayProcess(None, **variables) as gateway, gateway.client() as client:
            assert str(gateway.port) != variables["SESSIONSTORE_PORT"]  # --port 0 wins over the variable
            assert client.put("/sessions/a", json={}).status_code == 200
            assert gateway.output == ""
            assert "gateway.access" not in gateway.log
        with SessionStore.from_url(shared_redis.url, prefix="variables") as store:
            session = store.environment("checkout", "staging").get("a")
        assert session is not None
        assert session.expires_at - session.created_at == 86_400_000
