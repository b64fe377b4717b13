"""The embedded store's way in for other processes: who can open it, and what it takes."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fakeredis
import pytest
import redis

from sessionstore import AsyncSessionStore, EmbeddedServer, SessionStore, SessionStoreError
from sessionstore.protocol.scripts import load_script

from ..support.coverage import unmeasured

#: Runs Python in the process of the store, through the Lua of fakeredis.
ATTACK = 'return python.eval(\'__import__("os").mkdir("{}")\')'
INDIRECT = 'return python.builtins.eval(\'__import__("os").mkdir("{}")\')'


class Unpickled:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What an attack makes if it runs."""
    return tmp_path / "attacked"


@pytest.fixture
def path(embedded_server: EmbeddedServer) -> str:
    return unquote(embedded_server.listen().removeprefix("unix://"))


def resp(*parts: str | bytes | int) -> bytes:
    encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in encoded)


def exchange(path: str, *commands: bytes) -> list[bytes]:
    """Send commands in one segment, and a last PING; returns the lines of the replies before its own."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        client.sendall(b"".join([*commands, resp("PING", "end")]))
        received = b""
        while not received.endswith(b"$3\r\nend\r\n"):
            chunk = client.recv(65536)
            assert chunk, received
            received += chunk
    return received.removesuffix(b"$3\r\nend\r\n").splitlines()


def attacks(marker: Path) -> dict[str, list[bytes]]:
    """What would make `marker`, each with commands that are fine in themselves around it."""
    text = ATTACK.format(marker)
    sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
    function = f"#!lua name=mine\nredis.register_function('mine', function() {text} end)"
    return {
        "EVAL": [resp("EVAL", text, 0)],
        "eval": [resp("eval", text, 0)],
        "EvAl": [resp("EvAl", INDIRECT.format(marker), 0)],
        "EVAL_RO": [resp("EVAL_RO", text, 0)],
        "a script with a tail": [resp("EVAL", load_script("ping").text + "\n" + text, 0)],
        "SCRIPT LOAD": [resp("SCRIPT", "LOAD", text), resp("EVALSHA", sha, 0)],
        "one name for two words": [resp("SCRIPT LOAD", text), resp("EVALSHA", sha, 0)],
        "MULTI": [resp("MULTI"), resp("EVAL", text, 0), resp("EXEC")],
        "FUNCTION": [resp("FUNCTION", "LOAD", function), resp("FCALL", "mine", 0), resp("FCALL_RO", "mine", 0)],
        "RESTORE": [resp("RESTORE", "mine", 0, pickle.dumps(Unpickled(str(marker))))],
        "pipeline": [*[resp("PING")] * 100, resp("EVAL", text, 0)],
        "in a subscription": [resp("SSUBSCRIBE", "mine"), resp("EVAL", text, 0)],
        "RESP3": [resp("HELLO", 3), resp("EVAL", text, 0)],
        "HELLO with a user": [resp("HELLO", 3, "AUTH", "default", ""), resp("EVAL", text, 0)],
        "files": [
            resp("ACL", "SAVE"),
            resp("CONFIG", "SET", "dir", str(marker)),
            resp("SAVE"),
            resp("MODULE", "LOAD", "x"),
        ],
        "other commands": [
            resp("GET", "a"),
            resp("CLIENT", "KILL", "x"),
            resp("DEBUG", "x"),
            resp("AUTH", "x"),
            resp(),
        ],
    }


class TestAttack:
    @pytest.mark.parametrize("text", [ATTACK, INDIRECT])
    def test_works_on_fakeredis_itself(self, embedded_server: EmbeddedServer, marker: Path, text: str) -> None:
        """Else the tests below would prove nothing."""
        with embedded_server.client() as client:
            client.eval(text.format(marker), 0)

        assert marker.is_dir()

    @pytest.mark.parametrize("name", attacks(Path("x")))
    def test_is_refused(self, path: str, marker: Path, name: str) -> None:
        commands = attacks(marker)[name]

        replies = exchange(path, *commands)

        assert not marker.exists()
        fine = sum(
            b"PING" in command or b"SSUBSCRIBE" in command or command == resp("HELLO", 3) for command in commands
        )
        assert (
            sum(line.startswith(b"-NOPERM The embedded store takes only") for line in replies) == len(commands) - fine
        )

    @pytest.mark.parametrize(
        "data", [b"EVAL x 0\r\n", b"*1\r\n+PING\r\n", b"*x\r\n", b"*-1\r\n", b"*9999999999\r\n", b"\xff"]
    )
    def test_anything_but_a_command_ends_the_connection(self, path: str, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(path)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

            assert client.recv(1024) == b""

    @pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
    def test_by_redis_cli_is_refused(self, path: str, marker: Path) -> None:
        command = ["redis-cli", "-s", path, "EVAL", ATTACK.format(marker), "0"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

        assert "NOPERM" in told.stdout + told.stderr
        assert not marker.exists()


class TestSocket:
    def test_is_for_this_user_only(self, path: str) -> None:
        assert stat.filemode(Path(path).stat().st_mode) == "srw-------"
        assert stat.filemode(Path(path).parent.stat().st_mode) == "drwx------"

    def test_is_there_only_if_asked_for_and_gone_afterwards(self) -> None:
        with EmbeddedServer() as server:
            assert server._listener is None
            url = server.listen()
            assert server.listen() == url
            folder = Path(url.removeprefix("unix://")).parent
            assert folder.is_dir()

        assert not folder.exists()

    def test_folder_with_special_characters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Not tmp_path, whose length depends on the run: a socket's path has at most 107 characters.
        with tempfile.TemporaryDirectory(prefix="a b%20c?d") as folder:
            monkeypatch.setattr("tempfile.tempdir", folder)
            with EmbeddedServer() as server, SessionStore.from_url(server.listen(), deadline_s=20) as store:
                store.ping()

    def test_too_long_a_folder_is_an_error_that_names_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / ("x" * 100)
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        with EmbeddedServer() as server, pytest.raises(SessionStoreError, match="Set TMPDIR to a short path"):
            server.listen()
        assert list(folder.iterdir()) == []

    def test_connections_end_with_the_server(self) -> None:
        with EmbeddedServer() as server, socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(server.listen().removeprefix("unix://"))
            client.sendall(resp("PING"))
            assert client.recv(1024) == b"$4\r\nPONG\r\n"
            server.close()

            assert client.recv(1024) == b""


class TestClients:
    def test_threads_and_the_process_itself_share_the_state(self, embedded_server: EmbeddedServer) -> None:
        with (
            SessionStore.from_url(embedded_server.listen(), deadline_s=20) as proxy,
            SessionStore.embedded(embedded_server) as gateway,
            proxy.environment("checkout", "staging").view(on_stale="raise") as view,
        ):
            staging = gateway.environment("checkout", "staging")
            for number in range(20):
                session = staging.put("ci-42", label=f"grüße {number}")
                assert session.effect is not None
                assert session.effect.confirmed == 1
                found = view.get("ci-42")
                assert found is not None
                assert found.label == f"grüße {number}"
            staging.delete("ci-42")
            assert view.get("ci-42") is None

    async def test_asyncio(self, embedded_server: EmbeddedServer) -> None:
        async with AsyncSessionStore.from_url(embedded_server.listen(), deadline_s=20) as store:
            staging = store.environment("checkout", "staging")
            async with staging.view(on_stale="raise") as view:
                await asyncio.gather(*(staging.put(f"ci-{number}", label="x") for number in range(20)))
                assert all(view.get(f"ci-{number}") is not None for number in range(20))

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_both_protocols(self, embedded_server: EmbeddedServer, protocol: int) -> None:
        with redis.Redis.from_url(embedded_server.listen(), protocol=protocol, client_name="me") as client:
            assert client.ping()
            with client.pubsub() as pubsub:
                pubsub.ssubscribe("news")
                assert (pubsub.get_sharded_message(timeout=20) or {})["type"] == "ssubscribe"
                with embedded_server.client() as inside:
                    inside.spublish("news", "here")
                message = pubsub.get_sharded_message(timeout=20) or {}
            assert (message["type"], message["data"]) == ("smessage", b"here")
            with pytest.raises(redis.ResponseError, match="unknown command"):
                client.info()
            assert client.evalsha(load_script("ping").sha, 0).startswith(b'{"now":')

    def test_command_line(self, embedded_server: EmbeddedServer) -> None:
        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "sessionstore.cli", *arguments, "-p", "checkout", "-e", "staging"]
            variables = {**unmeasured(), "SESSIONSTORE_REDIS_URL": embedded_server.listen()}
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True)
            return done.stdout

        run("put", "ci-42", "--label", "x")

        assert "ci-42" in run("list")

    def test_error_of_a_script_keeps_its_meaning(self, embedded_server: EmbeddedServer) -> None:
        with (
            SessionStore.from_url(embedded_server.listen(), deadline_s=20) as store,
            embedded_server.client() as inside,
        ):
            inside.set("ss:{checkout}:staging:head", "no hash")
            with pytest.raises(SessionStoreError, match="data that this library did not write"):
                store.environment("checkout", "staging").put("ci-42", label="x")


def test_without_fakeredis_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fakeredis", None)

    with pytest.raises(SessionStoreError, match=r"install sessionstore\[embedded\]"):
        EmbeddedServer()


def test_fakeredis_is_imported_where_it_is_used(embedded_server: EmbeddedServer) -> None:
    assert isinstance(embedded_server.client(), fakeredis.FakeRedis)
