"""key_used.lua: note when API keys were last used."""

from __future__ import annotations

from typing import Any

from ..support.scripts import Scripts
from .test_key_create import hash_of, store, stored

INTERVAL_MS = 60_000


def use(scripts: Scripts, *pairs: str | int) -> dict[str, Any]:
    return scripts.run("key_used", [f"{scripts.prefix}:keys"], [INTERVAL_MS, *pairs])


def last_used(scripts: Scripts) -> dict[str, int | None]:
    return {record["id"]: record["lastUsedAt"] for record in stored(scripts).values()}


def test_writes_a_batch_and_leaves_the_rest_of_each_record(scripts: Scripts) -> None:
    # Given three keys
    for n in (1, 2, 3):
        store(scripts, hash_of(n), name=f"key {n}", project="checkout", expiresAt=10**15)
    before = stored(scripts)

    # When two of them were used
    reply = use(scripts, "000000000001", 100_000, "000000000003", 200_000)

    # Then those say when, and nothing else has changed
    assert reply["written"] == 2
    assert last_used(scripts) == {"000000000001": 100_000, "000000000002": None, "000000000003": 200_000}
    assert stored(scripts) == {
        digest: {**record, "lastUsedAt": last_used(scripts)[record["id"]]} for digest, record in before.items()
    }


def test_a_use_within_the_interval_of_the_last_is_not_written(scripts: Scripts) -> None:
    # Given a key that was used
    store(scripts, hash_of(1), lastUsedAt=100_000)

    # When it is used again a ms too early, and earlier than that, then nothing is written
    before = scripts.everything()
    assert use(scripts, "000000000001", 100_000 + INTERVAL_MS - 1)["written"] == 0
    assert use(scripts, "000000000001", 5)["written"] == 0
    assert scripts.everything() == before

    # When the interval is over, then it is
    assert use(scripts, "000000000001", 100_000 + INTERVAL_MS)["written"] == 1
    assert last_used(scripts) == {"000000000001": 100_000 + INTERVAL_MS}


def test_a_time_in_the_future_counts_as_now(scripts: Scripts) -> None:
    store(scripts, hash_of(1))
    reply = use(scripts, "000000000001", 10**15)
    assert last_used(scripts) == {"000000000001": reply["now"]}


def test_a_key_that_is_gone_is_skipped(scripts: Scripts) -> None:
    store(scripts, hash_of(2))
    assert use(scripts, "000000000001", 100_000, "000000000002", 100_000)["written"] == 1
    assert list(stored(scripts)) == [hash_of(2)]
