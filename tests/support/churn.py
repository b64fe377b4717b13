"""A process that writes sessions until its standard input ends: ``python -m tests.support.churn URL``.

It pauses between two writes. Without, it outruns a view that gets a small share of a busy machine, and such a view is
rightly stale.
"""

from __future__ import annotations

import random
import sys
import threading

from sessionstore import SessionStore, StoreUnavailableError

__all__ = ["KEYS", "await_end"]

#: Seconds between two writes.
_PAUSE_S = 0.002

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
        while not ended.wait(_PAUSE_S):
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
