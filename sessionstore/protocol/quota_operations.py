"""Writes under quotas, and the count that they need, as generators like those in operations.py.

A project is counted once: the scripts keep the count from then on. So sessions of an earlier release, or of a store
without quotas, are counted when a store with quotas first creates a session in their project.
"""

from __future__ import annotations

from ..errors import StoreUnavailableError
from ..session import Session
from . import calls, operations
from .calls import Call, Terms, WriteContext
from .keyspace import EnvironmentKeyspace
from .operations import Operation, Pause, new_id
from .replies import FoundReply, ScanReply, Uncounted, UsageReply, WriteReply

#: Runs of one write. Each run drops up to 1,000 expired sessions from the count.
_ATTEMPTS = 100

#: Seconds between two looks at another writer's count, and looks until this writer joins in: the other may have died.
_LOOK_S = 0.05
_LOOKS = 40


def write(context: WriteContext, call: Call[WriteReply], terms: Terms) -> Operation[Session]:
    """Write a session as `operations.write` does, after counting the project if the script asks for it."""
    for _ in range(_ATTEMPTS):
        try:
            return (yield from operations.write(context, call, terms))
        except Uncounted:
            yield from _count(context.keyspace)
    raise StoreUnavailableError(
        f"The sessions of project {context.keyspace.project!r} can't be counted, since their count kept getting lost; "
        "nothing was changed, try again later."
    )


def _count(keyspace: EnvironmentKeyspace) -> Operation[None]:
    count_id = new_id()
    for _ in range(_LOOKS):
        begun: UsageReply = yield calls.usage_begin(keyspace, count_id)
        if begun.complete:
            return
        if begun.id == count_id:
            break
        yield Pause(_LOOK_S)
    for environment in (yield from _find_environments(keyspace)):
        yield calls.usage_add(environment, ())
        cursor = ""
        while cursor != "0":
            page: ScanReply = yield calls.scan(environment, cursor or "0")
            cursor = page.cursor
            for start in range(0, len(page.members), calls.READ_BATCH):
                yield calls.usage_add(environment, page.members[start : start + calls.READ_BATCH])
    yield calls.usage_end(keyspace, begun.id)


def _find_environments(keyspace: EnvironmentKeyspace) -> Operation[list[EnvironmentKeyspace]]:
    slugs: dict[str, None] = {}
    cursor = ""
    while cursor != "0":
        page: FoundReply = yield calls.usage_find(keyspace, cursor or "0")
        cursor = page.cursor
        slugs.update(dict.fromkeys(page.environments))
    return [keyspace.sibling(slug) for slug in slugs]
