"""The README's examples, run as they stand: only ports and the address of Redis are put in their place."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from sessionstore import SessionStore

from ..support.redis_server import RedisServer, free_port

README = Path(__file__).resolve().parents[2] / "README.md"

#: Rounds of PUT, proxied request and DELETE, without a pause.
ROUNDS = 1000


def example(language: str, beginning: str) -> str:
    """The README's code block of a language that begins with, or holds, a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if beginning in block]
    assert len(found) == 1, f"one {language} example holds {beginning!r}"
    block: str = found[0]
    return block


@dataclass
class Staging:
    """What the README's reader has: a Redis, and free ports for what the examples start."""

    redis_url: str
    folder: Path
    processes: ExitStack

    def __post_init__(self) -> None:
        self.ports = {port: free_port() for port in (8080, 8081, 8082)}
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "SESSIONSTORE_REDIS_URL": self.redis_url,
            "SESSIONSTORE_RATE_LIMIT": "off",
            "SESSIONSTORE_PORT": str(self.ports[8080]),
        }

    def placed(self, text: str) -> str:
        """An example with this Redis and these ports."""
        text = text.replace("redis://localhost:6379/0", self.redis_url)
        for port, free in self.ports.items():
            text = text.replace(f"localhost:{port}", f"localhost:{free}").replace(
                f'"localhost", {port}', f'"localhost", {free}'
            )
        return text

    def shell(self, script: str, **variables: str) -> str:
        """Run an example of the command line."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.placed(script)],
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, port: int, *command: str) -> None:
        """Start a server, and return when it listens."""
        log = self.folder / f"{port}.log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=file, stderr=file)
        self.processes.callback(process.wait, 20)
        self.processes.callback(process.terminate)
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            try:
                socket.create_connection(("localhost", self.ports[port]), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, f"{command} did not listen"
                time.sleep(0.02)


@pytest.fixture
def staging(own_redis: RedisServer, tmp_path: Path) -> Iterator[Staging]:
    with ExitStack() as processes:
        yield Staging(own_redis.url, tmp_path, processes)


def test_ci_example_is_the_whole_life_of_a_run(staging: Staging) -> None:
    # Given: the catalog, a key, the gateway and the asyncio proxy of the README.
    (staging.folder / "catalog.toml").write_text(example("toml", "# catalog.toml"), encoding="utf-8")
    (staging.folder / "proxy.py").write_text(staging.placed(example("python", "# proxy.py")), encoding="utf-8")
    key = staging.shell(example("sh", "keys create") + '\nprintf %s "$KEY"').splitlines()[-1]
    staging.start(8080, "sessionstore", "serve")
    staging.start(8081, sys.executable, "-m", "uvicorn", "proxy:app", "--port", str(staging.ports[8081]))
    run = example("sh", "SESSION=")

    # When: the run's lines are run as they stand.
    output = staging.shell(run, KEY=key)

    # Then: the proxied request, made right after the PUT, was served what the PUT had set.
    assert (
        '{"mocks":["ovr_extraMock","ovr_declined"]}' in output or '{"mocks":["ovr_declined","ovr_extraMock"]}' in output
    )
    assert '{"ok":true,"mode":"delete"}' in output

    # And again and again, without a sleep.
    expected = re.findall(r'\{"mocks":.*?\]\}', output)[0]
    _repeat(staging.placed(run).replace("$KEY", key), expected)


def _repeat(run: str, expected: str) -> None:
    """Make the example's three calls many times; they are read from its curl lines."""
    session = re.search(r'^SESSION="(.*)"$', run, re.MULTILINE)
    assert session is not None
    lines = run.replace("\\\n", " ").replace("$SESSION", session[1]).splitlines()
    calls = [_curl(line) for line in lines if line.startswith("curl ")]
    assert [call[0] for call in calls] == ["PUT", "GET", "DELETE"]
    with httpx.Client() as client:
        for number in range(ROUNDS):
            put, proxied, delete = (client.request(*call[:2], headers=call[2], content=call[3]) for call in calls)
            assert put.status_code == delete.status_code == 200
            assert proxied.text == expected, f"in round {number}"


def _curl(line: str) -> tuple[str, str, dict[str, str], str | None]:
    """Method, URL, headers and body of a curl line."""
    words = shlex.split(line)[1:]
    method, url, headers, body = "GET", "", {}, None
    while words:
        match words.pop(0):
            case "-X":
                method = words.pop(0)
            case "-H":
                name, _, value = words.pop(0).partition(": ")
                headers[name] = value
            case "-d":
                body = words.pop(0)
            case word if not word.startswith("-"):
                url = word
    return method, url, headers, body


def test_threaded_proxy_serves_the_scenario_of_the_session(staging: Staging) -> None:
    source = staging.placed(example("python", "# threaded_proxy.py"))
    (staging.folder / "threaded_proxy.py").write_text(source, encoding="utf-8")
    staging.start(8082, sys.executable, "threaded_proxy.py")

    with SessionStore.from_url(staging.redis_url) as store, httpx.Client() as client:
        environment = store.environment("checkout", "staging")
        url = f"http://localhost:{staging.ports[8082]}/pay"
        for number in range(100):
            environment.put("ci-42", scenario=f"scn_{number}")
            assert client.get(url, headers={"x-flowmock-session": "ci-42"}).text == f"scn_{number}"
        assert client.get(url, headers={"x-flowmock-session": "ci-43"}).text == "no scenario"
        assert client.get(url).text == "no scenario"


def test_example_from_python_sets_and_deletes_a_session(staging: Staging) -> None:
    source = staging.placed(example("python", "nightly"))
    done = subprocess.run(
        [sys.executable, "-c", source], env=staging.environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 proxies serve it\n", "")


def test_readme_links_to_documents_that_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing
