"""key_count.lua: count the requests of an API key in its window."""

from __future__ import annotations

import pytest

from ..support.scripts import Scripts

WINDOW_MS = 60_000


def count(scripts: Scripts) -> tuple[int, int]:
    reply = scripts.run("key_count", [f"{scripts.prefix}:limits:x"], [WINDOW_MS])
    return reply["requests"], reply["left"]


def test_the_first_request_begins_a_window_and_the_others_do_not_prolong_it(scripts: Scripts) -> None:
    assert count(scripts) == (1, WINDOW_MS)
    scripts.redis.pexpire(f"{scripts.prefix}:limits:x", 30_000)

    requests, left = count(scripts)

    assert requests == 2
    assert 20_000 < left <= 30_000


def test_after_the_window_a_request_begins_another(scripts: Scripts) -> None:
    count(scripts)
    scripts.redis.delete(f"{scripts.prefix}:limits:x")

    assert count(scripts) == (1, WINDOW_MS)


@pytest.mark.parametrize("stored", [41, -5])
def test_a_counter_that_would_never_end_gets_a_window(scripts: Scripts, stored: int) -> None:
    scripts.redis.set(f"{scripts.prefix}:limits:x", stored)

    assert count(scripts) == (stored + 1, WINDOW_MS)
    assert scripts.redis.pttl(f"{scripts.prefix}:limits:x") > 0
