"""Use the installed packages as a new user does: import them, run the commands, call the gateway.

Run it outside the source tree, with the Python of an environment that holds the wheel: ``smoke.py redis`` where it has
the extras cli and gateway, ``smoke.py embedded`` where it has the extras client and embedded, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import gateway
import sessionstore
from sessionstore.protocol.scripts import load_script, script_names

#: Seconds that a process or a request may take.
TIMEOUT_S = 30

GATEWAY = [sys.executable, "-m", "gateway"]
EMBEDDED = [*GATEWAY, "--embedded"]


def check_files() -> None:
    """The packages come from the wheel, with their files that are not Python."""
    installed = Path(sysconfig.get_path("purelib"))
    for package in (sessionstore, gateway):
        assert Path(str(package.__file__)).is_relative_to(installed), f"{package.__file__} is not in {installed}"
    assert files("sessionstore").joinpath("py.typed").is_file()
    assert len([load_script(name) for name in script_names()]) > 20


def check_commands() -> None:
    """Both commands start."""
    command = Path(sysconfig.get_path("scripts"), "sessionstore")
    for arguments in ([str(command), "--help"], [sys.executable, "-m", "gateway", "--help"]):
        told = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        assert "usage" in told.stdout.lower(), told.stdout


def check_without_embedded() -> None:
    """A gateway on Redis needs no fakeredis: it serves, even while Redis is away."""
    assert find_spec("fakeredis") is None, "fakeredis came with the gateway"
    told = subprocess.run(EMBEDDED, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert told.returncode == 1, told
    assert "install sessionstore[embedded]" in told.stderr, told.stderr
    on_redis = [*GATEWAY, "--redis-url", "redis://127.0.0.1:1/0"]
    with _running(on_redis, "Listening on", SESSIONSTORE_API_KEY="fmk_" + "k" * 43) as said:
        url = _find(r'Listening on ([^"]+)', said).removeprefix("Listening on ")
        with urllib.request.urlopen(f"{url}/healthz", timeout=TIMEOUT_S) as response:
            assert response.status == 200


def check_embedded() -> None:
    """The HTTP client sets a session on a gateway with an embedded store, with the key that the gateway prints."""
    from sessionstore.client import SessionClient

    with _running(EMBEDDED, "curl -X DELETE") as said:
        place, key = _find(r"http://\S+/api/v1", said), _find(r"fmk_[A-Za-z0-9_-]+", said)
        client = SessionClient(place, key, project="checkout", environment="staging", timeout_s=TIMEOUT_S)
        with client, client.session("ci-42", label="smoke") as session:
            assert session.get().label == "smoke"


def _environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SESSIONSTORE_")}
    return {**inherited, "SESSIONSTORE_PORT": "0", **variables}


@contextmanager
def _running(command: list[str], last_words: str, **variables: str) -> Iterator[str]:
    """Run a command until the block ends; yields what it has said up to `last_words`."""
    with subprocess.Popen(
        command, env=_environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            while last_words not in said:
                line = process.stdout.readline()
                assert line, f"The gateway exited: {said}"
                said += line
            yield said
        finally:
            process.terminate()
            process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, f"the gateway exited with {process.returncode}"


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} is not in {text}"
    return found.group()


if __name__ == "__main__":
    check_files()
    check_commands()
    {"redis": check_without_embedded, "embedded": check_embedded}[sys.argv[1]]()
    print(f"sessionstore {sessionstore.__version__} works on Python {sys.version.split()[0]}.")
