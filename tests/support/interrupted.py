"""Interrupt a store for threads by a signal, at any moment, and check that each answer belongs to its call.

A separate process, because an interrupt inside Python's logging module could leave its lock locked for other threads.

    python -m tests.support.interrupted redis://127.0.0.1:6379/0 PREFIX
"""

from __future__ import annotations

import random
import signal
import sys

from sessionstore import SessionStore

#: calls that must have been interrupted in the end, however fast the machine is
INTERRUPTED = 150


class Interrupted(BaseException):
    """The signal raises this, at any place of the program."""


def interrupt(number: int, frame: object) -> None:
    raise Interrupted


def main(url: str, prefix: str) -> None:
    rng = random.Random(2)
    interrupted = 0
    # An interrupt may cost the pool a connection, so it has many.
    with SessionStore.from_url(url, prefix=prefix, lease_s=0.1, max_connections=2 * INTERRUPTED) as store:
        staging = store.environment("checkout", "staging")
        for key in ("a", "b"):
            staging.put(key, label=key)
        signal.signal(signal.SIGALRM, interrupt)
        while interrupted < INTERRUPTED:
            key = rng.choice("ab")
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.000_05, 0.000_6))
                session = staging.get(key) if rng.random() < 0.5 else staging.put(key, label=key)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                interrupted += 1
            else:
                assert session is not None
                assert session.session_key == session.label == key, f"{key} was answered with {session}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        for key in ("a", "b"):
            session = staging.get(key)
            assert session is not None
            assert session.label == key


if __name__ == "__main__":
    main(*sys.argv[1:])
