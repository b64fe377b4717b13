"""Many writers of one session: some order of the writes explains every state that is read.

The published chain names an order. Exactly one unused write must lead from each state of the chain to the next. Each
state that was read must be in the chain, and no reader may go back in it.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from sessionstore import AsyncSessionStore, Environment, Session, SessionStore
from sessionstore.protocol.messages import SessionSet, decode_change

from ..support.redis_server import RedisServer

WRITERS = 32
WRITES_EACH = 40
READERS = 4
STORES = 4
OVERRIDES = [f"ovr_{letter}" for letter in "abcdef"]

#: A write: "put" and the exact set, or a toggle and its override.
Write = tuple[str, tuple[str, ...]]


def make_writes(seed: int) -> list[list[Write]]:
    """The writes of each writer: exact sets and toggles. Many change nothing when their turn comes."""
    rng = random.Random(seed)
    return [
        [
            ("put", tuple(rng.sample(OVERRIDES, rng.randint(0, 4))))
            if rng.random() < 0.4
            else (rng.choice(["activate", "deactivate"]), (rng.choice(OVERRIDES),))
            for _ in range(WRITES_EACH)
        ]
        for _ in range(WRITERS)
    ]


def apply(write: Write, state: tuple[str, ...]) -> tuple[str, ...]:
    """The state that the contract demands after a write."""
    name, ids = write
    if name == "put":
        return ids
    if name == "activate":
        return state if ids[0] in state else (*state, ids[0])
    return tuple(other for other in state if other != ids[0])


@dataclass
class History:
    """What happened, in order: the chain, each writer's answers, and each reader's states."""

    messages: list[SessionSet]
    written: list[list[tuple[Write, Session]]]
    read: list[list[Session]]
    final: Session


def check(history: History) -> None:
    """Compare every answer and every read state with the chain."""
    messages = history.messages
    # The chain is unbroken from the first revision on
    assert [message.rev for message in messages] == list(range(1, len(messages) + 1))
    assert [message.prev for message in messages] == ["", *(message.id for message in messages[:-1])]
    states = {message.rev: message.session.overrides for message in messages}

    # Each write returned one revision: it made that revision, or changed nothing. One write made each revision.
    answered: dict[int, list[Write]] = {rev: [] for rev in states}
    for writer in history.written:
        for write, session in writer:
            answered[session.revision].append(write)
            assert session.overrides == states[session.revision]
            assert apply(write, session.overrides) == session.overrides
        revisions = [session.revision for _, session in writer]
        assert revisions == sorted(revisions), "a writer went back"
    for rev in range(2, len(messages) + 1):
        assert states[rev] != states[rev - 1], "a revision that changes nothing"
        assert any(apply(write, states[rev - 1]) == states[rev] for write in answered[rev]), f"no write made {rev}"

    # Each read is a state of the chain, and no reader goes back
    for reader in history.read:
        for session in reader:
            assert session.overrides == states[session.revision], "a state that never was"
        revisions = [session.revision for session in reader]
        assert revisions == sorted(revisions), "a reader went back"

    assert (history.final.revision, history.final.overrides) == (messages[-1].rev, messages[-1].session.overrides)


class Chain:
    """Collects the published messages, beginning before the first write."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        client: Any = server.client
        self._client = client()
        self._channel = f"{prefix}:{{checkout}}:staging:changes"
        self._pubsub: Any = self._client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.ssubscribe(self._channel, "end")
        self._pubsub.get_sharded_message(timeout=10)

    def read(self) -> list[SessionSet]:
        """The messages published so far."""
        messages: list[SessionSet] = []
        self._client.spublish("end", "")
        while True:
            message = self._pubsub.get_sharded_message(timeout=10)
            if message is None:
                continue
            if message["channel"] == b"end":
                return messages
            change = decode_change(message["data"])
            assert isinstance(change, SessionSet)
            messages.append(change)

    def close(self) -> None:
        self._pubsub.close()
        self._client.close()


@pytest.fixture
def chain(shared_redis: RedisServer, prefix: str) -> Iterator[Chain]:
    chain = Chain(shared_redis, prefix)
    yield chain
    chain.close()


async def run_tasks(server: RedisServer, prefix: str, writes: list[list[Write]], chain: Chain) -> History:
    stores = [AsyncSessionStore.from_url(server.url, prefix=prefix, lease_s=0.1) for _ in range(STORES)]
    environments = [store.environment("checkout", "staging") for store in stores]
    first = await environments[0].put("ci-42")
    done = asyncio.Event()

    async def write_all(number: int) -> list[tuple[Write, Session]]:
        staging = environments[number % STORES]
        answers: list[tuple[Write, Session]] = [] if number else [(("put", ()), first)]
        for name, ids in writes[number]:
            call = staging.put("ci-42", overrides=ids) if name == "put" else getattr(staging, name)("ci-42", *ids)
            answers.append(((name, ids), await call))
        return answers

    async def read_on(number: int) -> list[Session]:
        states = []
        while not done.is_set():
            session = await environments[number % STORES].get("ci-42")
            assert session is not None
            states.append(session)
        return states

    readers = [asyncio.create_task(read_on(number)) for number in range(READERS)]
    written = await asyncio.gather(*map(write_all, range(WRITERS)))
    done.set()
    read = await asyncio.gather(*readers)
    final = await environments[0].get("ci-42")
    for store in stores:
        await store.aclose()
    assert final is not None
    return History(chain.read(), written, read, final)


def run_threads(server: RedisServer, prefix: str, writes: list[list[Write]], chain: Chain) -> History:
    with ExitStack() as stack:
        stores = [
            stack.enter_context(SessionStore.from_url(server.url, prefix=prefix, lease_s=0.1)) for _ in range(STORES)
        ]
        environments = [store.environment("checkout", "staging") for store in stores]
        first = environments[0].put("ci-42")
        done = threading.Event()

        def write_all(number: int) -> list[tuple[Write, Session]]:
            staging = environments[number % STORES]
            answers: list[tuple[Write, Session]] = [] if number else [(("put", ()), first)]
            for name, ids in writes[number]:
                call = partial(staging.put, overrides=ids) if name == "put" else partial(_toggle, staging, name, ids)
                answers.append(((name, ids), call("ci-42")))
            return answers

        def read_on(number: int) -> list[Session]:
            states = []
            while not done.is_set():
                session = environments[number % STORES].get("ci-42")
                assert session is not None
                states.append(session)
            return states

        pool = stack.enter_context(ThreadPoolExecutor(WRITERS + READERS))
        stack.callback(done.set)
        readers = [pool.submit(read_on, number) for number in range(READERS)]
        written = list(pool.map(write_all, range(WRITERS)))
        done.set()
        read = [reader.result() for reader in readers]
        final = environments[0].get("ci-42")
    assert final is not None
    return History(chain.read(), written, read, final)


def _toggle(staging: Environment, name: str, ids: tuple[str, ...], session_key: str) -> Session:
    session: Session = getattr(staging, name)(session_key, *ids)
    return session


async def test_tasks_see_one_order_of_the_writes(shared_redis: RedisServer, prefix: str, chain: Chain) -> None:
    history = await run_tasks(shared_redis, prefix, make_writes(1), chain)

    check(history)
    assert sum(map(len, history.written)) == WRITERS * WRITES_EACH + 1
    assert max(len({session.revision for session in reader}) for reader in history.read) > 10


def test_threads_see_one_order_of_the_writes(shared_redis: RedisServer, prefix: str, chain: Chain) -> None:
    history = run_threads(shared_redis, prefix, make_writes(2), chain)

    check(history)
    assert sum(map(len, history.written)) == WRITERS * WRITES_EACH + 1
    assert max(len({session.revision for session in reader}) for reader in history.read) > 10


async def test_the_check_finds_histories_that_no_order_explains(
    shared_redis: RedisServer, prefix: str, chain: Chain
) -> None:
    history = await run_tasks(shared_redis, prefix, make_writes(3), chain)
    check(history)
    reader, messages = history.read[0], history.messages
    never = replace(reader[-1], overrides=("ovr_never",))
    _, last_answer = history.written[0][-1]
    planted: list[dict[str, Any]] = [
        {"read": [[*reader, never]]},
        {"read": [[*reader, reader[0]]]},
        {"final": never},
        {"messages": messages[:-1]},
        {"messages": [*messages[:5], *messages[6:]]},
        {"messages": [*messages[:5], replace(messages[5], prev="x"), *messages[6:]]},
        {"written": [[*history.written[0], (("put", ("ovr_never",)), last_answer)], *history.written[1:]]},
        {"written": [[*history.written[0], history.written[0][0]], *history.written[1:]]},
        # a lost update: no write made some of the revisions
        {"written": history.written[1:]},
    ]
    for change in planted:
        doctored = History(**{**vars(history), **change})
        with pytest.raises((AssertionError, KeyError)):
            check(doctored)
