"""A person who has only the README sees a mock go on and off."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from ..support.checkout import ROOT, make_repository, require_package_index
from ..support.coverage import unmeasured
from ..support.redis_server import free_port

#: Seconds; most of them install packages.
PATIENCE_S = 200


@pytest.mark.timeout(PATIENCE_S + 60)
def test_three_commands_in_an_empty_folder_show_a_mock_go_on_and_off(tmp_path: Path) -> None:
    require_package_index()
    # Given: an empty folder, and the first commands of the README.
    found = re.search(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    commands = found[1]
    assert len(commands.splitlines()) == 3
    folder = tmp_path / "empty"
    folder.mkdir()
    ports = {"SESSIONSTORE_PORT": str(free_port()), "PROXY_PORT": str(free_port())}
    repository = make_repository(tmp_path / "repository")

    # When: they run, until the last line is there.
    with subprocess.Popen(
        ["bash", "-euc", commands],
        cwd=folder,
        env=unmeasured() | ports | {"REPOSITORY": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        printed = ""
        for line in process.stdout:
            printed += line
            if line.startswith("Ctrl+C"):
                os.killpg(process.pid, signal.SIGINT)
        watchdog.cancel()

    # Then: the proxied requests before, after and at the end show the mock off, on and off.
    answers = re.findall(r"^\$ curl .*\n(.*)$", printed, re.MULTILINE)
    assert len(answers) == 5, printed
    before, put, during, delete, after = answers
    assert (before, during, after) == ('{"paid":true}', '{"error":"The card is declined."}', '{"paid":true}')
    assert '"scenario":"scn_paymentDeclined"' in put
    assert delete == '{"ok":true,"mode":"delete"}'
    # And: the lines for another terminal find the programs.
    activate = re.search(r"^\$ (\. '.*/\.venv/bin/activate')$", printed, re.MULTILINE)
    assert activate is not None, printed
    subprocess.run(["bash", "-euc", f"{activate[1]}\nsessionstore --version"], check=True, timeout=60)
    # And: Ctrl+C has stopped everything, without a word of an error.
    assert "Traceback" not in printed
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
