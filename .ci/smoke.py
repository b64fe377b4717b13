"""Use the installed packages as a new user does: import them, run the commands, call the gateway.

Run it outside the source tree, with the Python of an environment that holds the wheel with its extras cli and gateway.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
from importlib.resources import files
from pathlib import Path

import gateway
import sessionstore
from sessionstore.protocol.scripts import load_script, script_names

#: Seconds that a process or a request may take.
TIMEOUT_S = 30


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


def check_gateway() -> None:
    """A gateway on an embedded store accepts a PUT with the key that it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SESSIONSTORE_")}
    environment["SESSIONSTORE_PORT"] = "0"
    with subprocess.Popen(
        [sys.executable, "-m", "gateway"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            while "curl -X DELETE" not in said:
                line = process.stdout.readline()
                assert line, f"The gateway exited: {said}"
                said += line
            request = urllib.request.Request(
                _find(r"http://\S+/ci-42\?[^']+", said),
                data=json.dumps({"label": "smoke"}).encode(),
                headers={
                    "Authorization": f"Bearer {_find(r'fmk_[A-Za-z0-9_-]+', said)}",
                    "Content-Type": "application/json",
                },
                method="PUT",
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                assert response.status == 200
                assert json.load(response)["label"] == "smoke"
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
    check_gateway()
    print(f"sessionstore {sessionstore.__version__} works on Python {sys.version.split()[0]}.")
