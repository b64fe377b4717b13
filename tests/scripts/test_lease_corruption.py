"""The scripts that a view calls for its lease: they fail before they write where one of their keys is not theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from ..support.leases import Leases
from ..support.scripts import Scripts

CALLS: dict[str, Callable[[Leases], Any]] = {
    "join": lambda leases: leases.join("l2", 1, "g1"),
    "renew": lambda leases: leases.renew("l1", 2, "g2"),
    "ack": lambda leases: leases.ack("l1", 2, "g2"),
    "leave": lambda leases: leases.leave("l1"),
}


@pytest.mark.parametrize("part", ["head", "leases", "acks", "views"])
@pytest.mark.parametrize("name", CALLS)
def test_a_key_of_another_type(scripts: Scripts, leases: Leases, name: str, part: str) -> None:
    # Given a lease, where nothing has run out, and a change that its view has to acknowledge
    scripts.put("ci-42", op="g1")
    leases.join("l1", 1, "g1")
    scripts.put("ci-42", "+label", "x", op="g2")
    key = {"head": scripts.head, "leases": scripts.leases, "acks": scripts.acks, "views": scripts.views}[part]
    scripts.redis.delete(key)
    scripts.redis.set(key, "not what it should be")
    before = scripts.everything()

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        CALLS[name](leases)

    assert scripts.everything() == before
    assert leases.announced() == []
