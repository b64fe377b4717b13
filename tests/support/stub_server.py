"""A server that speaks Redis's protocol and answers scripts as a test wants."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

__all__ = ["StubServer"]

_GREETING = b"%1\r\n$5\r\nproto\r\n:3\r\n"
_INFO = b"run_id:a1\r\nmaster_replid:b2\r\nuptime_in_seconds:1000\r\n"


class StubServer:
    """Answers EVALSHA and EVAL with the raw bytes of `answer`; b"" closes the connection instead.

    Several answers are given by turns.
    """

    def __init__(self, answer: bytes | Iterator[bytes]) -> None:
        self.answer = answer
        #: the scripts it was asked to run
        self.calls = 0
        self._open: set[socket.socket] = set()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="stub", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.server_address[1]}/0"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._open):
            connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def _reply(self, command: list[bytes]) -> bytes:
        match command[0].upper():
            case b"HELLO":
                return _GREETING
            case b"INFO":
                return b"$%d\r\n%b\r\n" % (len(_INFO), _INFO)
            case b"EVALSHA" | b"EVAL":
                self.calls += 1
                return self.answer if isinstance(self.answer, bytes) else next(self.answer)
            case _:
                return b"+OK\r\n"

    def _handler(self) -> Callable[..., Any]:
        stub = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                stub._open.add(self.connection)
                try:
                    while line := self.rfile.readline():
                        command = [self._bulk() for _ in range(int(line[1:]))]
                        reply = stub._reply(command)
                        if not reply:
                            return
                        self.wfile.write(reply)
                except OSError:
                    pass
                finally:
                    stub._open.discard(self.connection)

            def _bulk(self) -> bytes:
                length = int(self.rfile.readline()[1:])
                return self.rfile.read(length + 2)[:-2]

        return Handler
