"""Processes that a benchmark talks to: each runs one function, over a pipe."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

__all__ = ["Peer"]

#: Seconds that an answer may take.
_PATIENCE_S = 120.0

# A forked process would share connections, threads and the state of locks.
_context = multiprocessing.get_context("spawn")


class Peer:
    """A process that runs ``target(pipe, *arguments)``, which sends a message when it is ready.

    It must exit when it receives None.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self) -> Any:
        """Receive its next message."""
        if not self._pipe.poll(_PATIENCE_S):
            raise TimeoutError(f"A process of this benchmark was silent for {_PATIENCE_S:g} s.")
        return self._pipe.recv()

    def ask(self, question: object) -> Any:
        """Send a message and receive the answer."""
        self.tell(question)
        return self.receive()

    def tell(self, what: object) -> None:
        """Send a message."""
        self._pipe.send(what)

    def close(self) -> None:
        """Stop the process; kill it if it does not exit."""
        with contextlib.suppress(OSError):  # it may have ended
            self.tell(None)
        self._process.join(10)
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
