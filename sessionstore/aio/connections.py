"""Run calls for asyncio on one connection: each within a deadline, never twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from redis.exceptions import NoScriptError

from ..errors import SessionStoreError
from ..options import StoreConfig
from ..protocol import calls
from ..protocol.calls import Call, DurableCall, Replicated
from ..replica.follower import Backoff
from ..transport import redis_internals
from ..transport.connect import show_address
from ..transport.driver import BaseConnections, may_repeat, most_waiting, replicated, unconfirmed, wait_commands
from ..transport.errors import FOREIGN_ERRORS
from ..transport.resp import evalsha, evaluate, pack
from ..transport.topology import LONGEST_PAUSE_S, Address
from .link import Link, disconnect
from .pipeline import PipelineDriver, read_reply
from .waiting import WaitingConnections

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """Calls that were submitted, and their answers to come."""

    calls: Sequence[Call[Any]]
    answers: Sequence[asyncio.Future[Any]]
    sent_at: float

    def abandon(self) -> None:
        """Wait for no further answer."""
        for answer in self.answers:
            answer.cancel()


class Connections(BaseConnections):
    """Runs the calls of one route, all on one connection: those that are ready together leave together.

    Writes that wait for replicas have connections of their own.
    """

    def __init__(self, link: Link, config: StoreConfig) -> None:
        super().__init__(link, config)
        self._pipeline = PipelineDriver(link, self._deadline_s)
        self._waiting = WaitingConnections(link, most_waiting(link.pool))

    def with_deadline(self, deadline_s: float) -> Self:
        """Run calls within another deadline, on a connection of their own: neither kind stands in the other's way."""
        other = super().with_deadline(deadline_s)
        other._pipeline = PipelineDriver(self.link, deadline_s)
        return other

    async def execute(self, call: Call[T]) -> T:
        """Run one script and decode its answer; every error is one of ours."""
        started = time.monotonic()
        try:
            payload = await self._pipeline.submit(call)
            if isinstance(payload, SessionStoreError):
                raise payload
            result = call.decode(payload)
        except SessionStoreError as exc:
            self._report((call,), (exc,), started)
            raise
        self._report((call,), (None,), started)
        return result

    async def execute_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run scripts in one round trip. Returns the answers in order, with errors in place of missing answers."""
        return await self.finish(self.begin(calls))

    def begin(self, calls: Sequence[Call[Any]]) -> Sent:
        """Have scripts sent, without waiting for the answers; call `finish` or `abandon`."""
        return Sent(calls, [self._pipeline.submit(call) for call in calls], time.monotonic())

    async def finish(self, sent: Sent) -> list[Any]:
        """Wait for the answers, and return them as `execute_all` does."""
        try:
            payloads = [await answer for answer in sent.answers]
        finally:
            sent.abandon()
        return self.results(sent.calls, payloads, sent.sent_at)

    async def execute_durable(self, write: DurableCall[T]) -> Replicated[T]:
        """Run a script, and wait on its connection until replicas have what it wrote."""
        started = time.monotonic()
        deadline = started + self._deadline_s
        backoff = Backoff(last_s=LONGEST_PAUSE_S) if self.link.moves else None
        while True:
            sent = False
            running: Call[Any] = write.call
            try:
                async with self._waiting.lend(deadline - time.monotonic()) as connection:
                    sent = True
                    payload = await _evaluate(connection, write.call)
                    [reply] = self.results((write.call,), (payload,), started)
                    if not isinstance(reply, SessionStoreError):
                        running, replied_at = write.fence, time.monotonic()
                        commands = wait_commands(write, deadline - replied_at)
                        redis_internals.write(connection, commands)
                        result = replicated(write, reply, replied_at, [await read_reply(connection) for _ in commands])
                        self._report((running,), (None,), replied_at)
                        return result
                raise reply
            except FOREIGN_ERRORS as exc:
                failure = exc
            committed = running is write.fence
            if backoff is not None:
                self.link.doubt(failure)
                pause_s = backoff.failed()
                if not committed and may_repeat(failure, sent=sent) and time.monotonic() + pause_s < deadline:
                    await asyncio.sleep(pause_s)
                    continue
            error = unconfirmed(failure) if committed else self._translate(failure, write.call, sent=sent)
            self._report((running,), (error,), started)
            raise error from failure

    async def check_primaries(self, within_s: float) -> dict[str, SessionStoreError | None]:
        """Run a script on each primary of the store, all at once; each address with None or the error."""
        try:
            addresses = await self.link.primaries(within_s / 2)
        except FOREIGN_ERRORS as exc:
            raise self._translate(exc, calls.ping(), sent=False) from exc
        errors = await asyncio.gather(*(self._check(address, within_s / 2) for address in addresses))
        return {show_address(self.link.pool, address): error for address, error in zip(addresses, errors, strict=True)}

    async def _check(self, address: Address | None, within_s: float) -> SessionStoreError | None:
        try:
            async with asyncio.timeout(within_s):
                connection = await self.link.open(within_s, for_calls=False, address=address)
                try:
                    await _evaluate(connection, calls.ping())
                finally:
                    await disconnect(connection)
        except FOREIGN_ERRORS as exc:
            return self._translate(exc, calls.ping(), sent=True)
        return None

    async def aclose(self) -> None:
        """Close for good; calls that are under way fail."""
        await self._waiting.aclose()
        await self._pipeline.aclose()


async def _evaluate(connection: Any, call: Call[Any]) -> Any:
    """EVALSHA, and EVAL if Redis has forgotten the script; an error reply is raised."""
    redis_internals.write(connection, [pack(evalsha(call))])
    payload = await read_reply(connection)
    if isinstance(payload, NoScriptError):
        redis_internals.write(connection, [pack(evaluate(call))])
        payload = await read_reply(connection)
    if isinstance(payload, Exception):
        raise payload
    return payload
