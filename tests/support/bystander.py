"""A process with a view that looks up without pause: ``python -m tests.support.bystander DRIVER URL LEASE_S``.

After each pause that is longer than a lease, for example after SIGSTOP, it prints whether the first look-up was fresh.
When its standard input ends, it waits until the view is fresh and prints the sessions.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any

from sessionstore import AsyncSessionStore, SessionStore

from .churn import KEYS, await_end


class Watch:
    """Looks up, and notices pauses of its process."""

    def __init__(self, view: Any, lease_s: float) -> None:
        self._view = view
        self._lease_s = lease_s
        self._ended = threading.Event()
        self._looked_at = time.monotonic()
        threading.Thread(target=await_end, args=(self._ended,), daemon=True).start()
        print("open", flush=True)

    def look(self) -> bool:
        """Look up once; return False at the end of the input."""
        # In this order, so that the next look-up notices a stop between the two.
        fresh = self._view.fresh
        now = time.monotonic()
        if now - self._looked_at > self._lease_s:
            print(json.dumps({"away_s": now - self._looked_at, "fresh": fresh}), flush=True)
        self._looked_at = now
        self._view.get("ci-1")
        return not (self._ended.is_set() and fresh)

    def report(self) -> None:
        held = {key: session.revision for key in KEYS if (session := self._view.peek(key)) is not None}
        print(json.dumps({"held": held, "resyncs": self._view.stats.resyncs}), flush=True)


def watch(url: str, lease_s: float) -> None:
    with (
        SessionStore.from_url(url, lease_s=lease_s) as store,
        store.environment("checkout", "staging").view() as view,
    ):
        watching = Watch(view, lease_s)
        while watching.look():
            time.sleep(0.001)
        watching.report()


async def watch_async(url: str, lease_s: float) -> None:
    async with (
        AsyncSessionStore.from_url(url, lease_s=lease_s) as store,
        store.environment("checkout", "staging").view() as view,
    ):
        watching = Watch(view, lease_s)
        while watching.look():  # noqa: ASYNC110  it looks up all the time, as requests would
            await asyncio.sleep(0.001)
        watching.report()


def main() -> None:
    driver, url, lease = sys.argv[1:]
    if driver == "sync":
        watch(url, float(lease))
    else:
        asyncio.run(watch_async(url, float(lease)))


if __name__ == "__main__":
    main()
