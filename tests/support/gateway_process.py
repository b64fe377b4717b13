"""The gateway in its own process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from .gateway import AUTHORIZATION, KEY, PLACE

__all__ = ["GatewayProcess", "run_gateway"]

_LISTENING = re.compile(r"Listening on http://([^\"]+):(\d+)")


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SESSIONSTORE_")}
    return {**inherited, "PYTHONWARNINGS": "error", **variables}


def run_gateway(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that exits by itself, such as ``--help``."""
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(command, env=_environment(variables), capture_output=True, text=True, timeout=30, check=False)


class GatewayProcess:
    """Runs on a free port, as a context manager.

    A `redis_url` of None chooses the embedded store, and an empty one leaves the choice to the variables.
    """

    def __init__(self, redis_url: str | None, *arguments: str, **variables: str) -> None:
        self._command = [sys.executable, "-m", "gateway", "--port", "0", *arguments]
        if redis_url is None:
            self._command.append("--embedded")
        elif redis_url:
            self._command += ["--redis-url", redis_url]
            variables.setdefault("SESSIONSTORE_API_KEY", KEY)
        self._variables = variables
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        self.host, self.port = "", 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, env=_environment(self._variables), stdout=self._output, stderr=self._errors
        )
        deadline = time.monotonic() + 30
        while True:
            match = _LISTENING.search(self.log)
            if match:
                self.host, self.port = match[1], int(match[2])
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise AssertionError(f"the gateway did not start: {self.log}")
            time.sleep(0.01)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def output(self) -> str:
        """What it has written to standard output."""
        return _read(self._output.fileno())

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return _read(self._errors.fileno())

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> httpx.Client:
        """A client that sends the key, the project and the environment."""
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=AUTHORIZATION, params=PLACE, timeout=20)

    def connect(self) -> socket.socket:
        """A bare connection, for input that no client library sends."""
        return socket.create_connection((self.host, self.port), timeout=20)

    def resident_bytes(self) -> int:
        """The memory that the process holds."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def listeners(self) -> dict[str, int]:
        """Count the sockets that it listens on."""
        assert self._process is not None
        process = Path(f"/proc/{self._process.pid}")
        own = {str(link.readlink()) for link in (process / "fd").iterdir()}
        counts = {}
        # The columns of state and inode, and the state of a socket that listens.
        for kind, state, inode, listening in (("tcp", 3, 9, "0A"), ("unix", 3, 6, "00010000")):
            rows = [line.split() for line in (process / "net" / kind).read_text().splitlines()[1:]]
            counts[kind] = sum(row[state] == listening and f"socket:[{row[inode]}]" in own for row in rows)
        return counts

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until it exits; returns the exit code."""
        assert self._process is not None
        return self._process.wait(30)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._output.close()
        self._errors.close()


def _read(descriptor: int) -> str:
    # The gateway shares the file object's position, so read without moving it.
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
