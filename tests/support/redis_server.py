"""A real redis-server for tests: its own process, port and folder."""

from __future__ import annotations

import fcntl
import functools
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

__all__ = ["MISSING", "RedisServer", "Startable", "find_redis_server", "free_port", "reserve"]

MISSING = "redis-server is not installed (Debian: apt-get install redis-server); set REDIS_SERVER to its path"


def find_redis_server() -> str | None:
    """Path of the server's program: REDIS_SERVER, else the one in the PATH."""
    return os.environ.get("REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")


#: A folder in memory, if there is one. A sentinel syncs its file to the disk and does nothing meanwhile, so it may miss
#: its timer by seconds while the disk is busy.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

#: Ports that were given away lately.
_given: deque[int] = deque(maxlen=500)


def free_port() -> int:
    """A free TCP port of the loopback interface.

    It is below the range for outgoing connections. Otherwise such a connection could take it while its server is down,
    or a client could connect to itself.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as sock, suppress(OSError):
            # A server that is about to start has not taken its port yet, and one that is down takes it again.
            if port not in _given and reserve(port):
                sock.bind(("127.0.0.1", port))
                _given.append(port)
                return port
    raise RuntimeError("there is no free port")


def reserve(port: int) -> bool:
    """Whether no other process has given this port away. None gives it away then while this process lives."""
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@functools.cache
def _reservations() -> int:
    """A file for all processes: each port is a byte, which the process locks that gave it away."""
    return os.open(f"{tempfile.gettempdir()}/sessionstore-ports-{os.getuid()}", os.O_CREAT | os.O_RDWR, 0o600)


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
        self._folder = tempfile.TemporaryDirectory(
            prefix="sessionstore-redis-", dir=_MEMORY if sentinel else None, ignore_cleanup_errors=True
        )
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

    def last_words(self, lines: int = 15) -> str:
        """The end of its log, for the message of a failed wait."""
        return "\n".join(self._log.read_text().splitlines()[-lines:])

    @property
    def _log(self) -> Path:
        return self.folder / "log"

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
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *self._arguments, *itertools.chain(*options)], stdout=log, stderr=log
            )
        if await_ready:
            self.await_ready()
        return self

    def await_ready(self) -> None:
        """Return when it answers PING."""
        assert self._process is not None, "the server runs"
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with self.client(retry=None, socket_timeout=1) as client:
                    client.ping()
                    # Another server may have its port.
                    if client.info("server")["process_id"] == self.pid:
                        return
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                time.sleep(0.01)
        raise RuntimeError(f"the server does not answer:\n{self.last_words()}")

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
