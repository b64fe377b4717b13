"""A real redis-server for tests: its own process, port and folder."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Self

import redis

from .certificate import secure, server_options

__all__ = ["MISSING", "RedisServer", "Startable", "find_redis_server", "free_port"]

MISSING = "redis-server is not installed (Debian: apt-get install redis-server); set REDIS_SERVER to its path"


def find_redis_server() -> str | None:
    """Path of the server's program: REDIS_SERVER, else the one in the PATH."""
    return os.environ.get("REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")


#: Ports that were given away lately.
_given: deque[int] = deque(maxlen=500)


def free_port() -> int:
    """A free TCP port of the loopback interface.

    It is below the range for outgoing connections. Otherwise such a connection could take it while its server is down,
    or a client could connect to itself.
    """
    # Servers that are about to start have not taken theirs yet, here or in another worker.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4
    for port in random.SystemRandom().sample(range(20_000 + worker, 32_000, 4), 100):
        with socket.socket() as sock, suppress(OSError):
            if port not in _given:
                sock.bind(("127.0.0.1", port))
                _given.append(port)
                return port
    raise RuntimeError("there is no free port")


class Startable:
    """Starts as a context manager, and closes at its end or if it can't start."""

    def start(self) -> Self:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class RedisServer(Startable):
    """Start it with `start` or as a context manager.

    Parameters
    ----------
    port : int, optional
        A free one by default.
    sentinel : str, optional
        The configuration of a sentinel, which the server is then.
    certificate : str, optional
        The file of one: the server talks TLS only, to other servers too.
    options : str
        Command-line options, without dashes.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        sentinel: str | None = None,
        certificate: str | None = None,
        **options: str,
    ) -> None:
        program = find_redis_server()
        if program is None:
            raise RuntimeError(MISSING)
        self._program = program
        self.port = port or free_port()
        self.options = options if sentinel else {"save": "", "appendonly": "no", **options}
        self._certificate = certificate
        self._folder = tempfile.TemporaryDirectory(prefix="sessionstore-redis-", ignore_cleanup_errors=True)
        self._arguments: list[str] = []
        if sentinel is not None:
            # A sentinel writes what it learns into this file.
            configuration = self.folder / "sentinel.conf"
            configuration.write_text(sentinel)
            self._arguments = [str(configuration), "--sentinel"]
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def url(self) -> str:
        return secure(f"redis://127.0.0.1:{self.port}/0", self._certificate)

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return Path(self._folder.name)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server runs"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started, and neither stopped nor paused since."""
        return self._process is not None and not self._paused

    def client(self, **kwargs: object) -> redis.Redis:
        """A plain client, to read and change data without the library."""
        client: redis.Redis = redis.Redis.from_url(self.url, **kwargs)
        return client

    def clients(self, name: str) -> list[int]:
        """The ids of the connections whose client has this name."""
        with self.client() as behind:
            return [int(client["id"]) for client in behind.client_list() if client["name"] == name]

    def kill_clients(self, name: str) -> None:
        """Close the connections whose client has this name."""
        ids = self.clients(name)
        with self.client() as behind:
            for client_id in ids:
                behind.client_kill_filter(_id=client_id)

    def start(self, *, await_ready: bool = True) -> Self:
        place = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._folder.name}
        if self._certificate is not None:
            place |= server_options(self._certificate, self.port)
        options = [(f"--{name.replace('_', '-')}", value) for name, value in (place | self.options).items()]
        self._process = subprocess.Popen(
            [self._program, *self._arguments, *itertools.chain(*options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if await_ready:
            self.await_ready()
        return self

    def await_ready(self) -> None:
        """Return when it answers PING."""
        deadline = time.monotonic() + 10
        while True:
            try:
                with self.client(retry=None, socket_timeout=1) as client:
                    client.ping()
                    return
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it hangs, and its sockets stay open."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def close(self) -> None:
        """Stop it for good and remove its folder."""
        if self._process is not None:
            self._end(signal.SIGKILL)
        self._folder.cleanup()

    def _end(self, number: int) -> None:
        assert self._process is not None, "the server runs"
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        self._process.wait(10)
        self._process = None
        self._paused = False
