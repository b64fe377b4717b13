"""Someone who follows the pages in bash: the commands run as printed, but for ports and the address of Redis."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from .checkout import ROOT
from .coverage import unmeasured
from .redis_server import free_port

__all__ = ["Reader", "blocks"]

#: Seconds that a command or the start of a server may take.
PATIENCE_S = 60

#: The ports that the pages name.
PORTS = (6379, 8080, 8081, 8082)

_REDIS_URL = "redis://localhost:6379/0"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Reader:
    """Has a Redis, free ports, and a folder with the examples; as a context manager, stops what it has started."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.ports = {port: free_port() for port in PORTS}
        self.environ = {
            **{name: value for name, value in unmeasured().items() if not name.startswith("SESSIONSTORE_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "SESSIONSTORE_REDIS_URL": redis_url,
            "SESSIONSTORE_PORT": str(self.ports[8080]),
        }
        self._processes = ExitStack()
        shutil.copytree(ROOT / "examples", folder / "examples", dirs_exist_ok=True)
        for file in (folder / "examples").iterdir():
            if file.is_file():
                file.write_text(self.placed(file.read_text(encoding="utf-8")), encoding="utf-8")

    def placed(self, text: str) -> str:
        """A text of the pages with this Redis and these ports."""
        text = text.replace(_REDIS_URL, self.redis_url)
        for port, free in self.ports.items():
            text = re.sub(rf'(localhost"?, |localhost:|127\.0\.0\.1:|--port ){port}\b', rf"\g<1>{free}", text)
        return text

    def url(self, port: int, path: str) -> str:
        """Where a server of the pages answers."""
        return f"http://localhost:{self.ports[port]}{path}"

    def run(self, script: str, *, within_s: float = PATIENCE_S, **variables: str) -> str:
        """Run commands in bash; returns what they print."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.placed(script)],
            cwd=self.folder,
            env=self.environ | variables,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, port: int, command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a server, and return when it listens on what the pages call `port`."""
        log = self.folder / f"{port}.log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                shlex.split(self.placed(command)),
                executable=shutil.which(shlex.split(command)[0], path=self.environ["PATH"]),
                cwd=self.folder,
                env=self.environ | variables,
                stdout=file,
                stderr=file,
            )
        self._processes.callback(process.wait, PATIENCE_S)
        self._processes.callback(process.terminate)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            try:
                socket.create_connection(("localhost", self.ports[port]), 1).close()
                return process
            except OSError:
                assert time.monotonic() < deadline, f"{command} did not listen"
                time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._processes.close()
