"""A process that writes sessions without pause until its standard input ends: ``python -m tests.support.churn URL``."""

from __future__ import annotations

import random
import sys
import threading

from sessionstore import SessionStore, StoreUnavailableError

__all__ = ["KEYS", "await_end"]

KEYS = [f"ci-{number}" for number in range(20)]


def await_end(ended: threading.Event) -> None:
    """Set the event when standard input ends."""
    sys.stdin.read()
    ended.set()


def main() -> None:
    ended = threading.Event()
    threading.Thread(target=await_end, args=(ended,), daemon=True).start()
    rng = random.Random(0)
    number = 0
    begun = False
    with SessionStore.from_url(sys.argv[1], lease_s=1.0, deadline_s=0.3) as store:
        staging = store.environment("checkout", "staging")
        while not ended.is_set():
            number += 1
            key = rng.choice(KEYS)
            try:
                if rng.random() < 0.1:
                    staging.delete(key, wait=False)
                else:
                    overrides = [f"ovr_{rng.randrange(1000)}" for _ in range(rng.randrange(5))]
                    staging.put(key, label=str(number), overrides=overrides, wait=False)
                if not begun:
                    begun = True
                    print("writes", flush=True)
            except StoreUnavailableError:
                ended.wait(0.02)


if __name__ == "__main__":
    main()
