"""Calls on one connection: they leave in order, and the replies come in the order in which the calls left.

No I/O, no clock, no task. A driver sends what `take` returns, and brings each reply to `replied`::

    WAITING ──take──> SENT ──replied──> answered
       ^                │ └──lost─────> failed: the outcome of a write is unknown
       │                └──NOSCRIPT──┐
       └─────────────────────────────┘
    WAITING ──refused, or late──> failed: nothing was changed

A caller that gives up leaves its place in the order. The reply to that place is dropped, so no other call takes it. A
call whose caller gives up before it is sent is never sent.

A script that Redis does not know has not run. Its call is sent again with the script's text, ahead of the calls that
wait. The calls that were sent meanwhile overtake it.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from math import inf
from typing import Any, Protocol

from redis.exceptions import InvalidResponse, NoScriptError

from ..errors import StoreUnavailableError
from ..protocol.calls import Call
from .errors import translate
from .resp import evalsha, evaluate, pack

#: Calls that may be under way together: all that are of unknown outcome when Redis stops, and all that the transport
#: holds for a Redis that does not read.
MAX_SENT = 256
#: Calls that may wait to be sent. Redis serves about as many within the default deadline: more would only be late.
MAX_WAITING = 16_384


class Answer(Protocol):
    """A future that takes a call's reply or error. It is done early if the caller gives up."""

    def done(self) -> bool:
        """Whether it takes no result any more."""

    def set_result(self, result: Any) -> None:
        """Take the reply, or one of our errors."""


class _Place:
    """A call's place in the order."""

    __slots__ = ("answer", "call", "command", "deadline", "sent_at", "with_text")

    def __init__(self, call: Call[Any], answer: Answer, deadline: float) -> None:
        self.call = call
        #: packed here, so that what can't be packed fails its caller only
        self.command = pack(evalsha(call))
        self.answer = answer
        self.deadline = deadline
        self.sent_at = 0.0
        #: whether it was sent with its script's text
        self.with_text = False

    def fail(self, error: Exception, *, sent: bool) -> None:
        if not self.answer.done():
            failure = translate(error, self.call, sent=sent)
            failure.__cause__ = error
            self.answer.set_result(failure)


class Pipeline:
    """The calls of one connection.

    Parameters
    ----------
    deadline_s : float
        Seconds from a call's submission until it fails.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._sent: deque[_Place] = deque()
        self._waiting: deque[_Place] = deque()
        #: calls that Redis did not know the scripts of
        self._again: deque[_Place] = deque()
        #: when the last reply came
        self.heard_at = -inf

    def has_waiting(self) -> bool:
        """Whether a call waits to be sent, and its caller for the answer."""
        for places in (self._again, self._waiting):
            while places and places[0].answer.done():
                places.popleft()
        return bool(self._again or self._waiting)

    @property
    def waiting(self) -> int:
        """How many calls wait to be sent, about."""
        return len(self._waiting)

    @property
    def has_sent(self) -> bool:
        """Whether a reply has yet to come."""
        return bool(self._sent)

    def submit(self, call: Call[Any], answer: Answer, now: float) -> None:
        """Have a call sent; it is answered within the deadline."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(_Place(call, answer, now + self._deadline_s))
            return
        answer.set_result(
            StoreUnavailableError(
                f"{MAX_WAITING} calls of this store already wait for Redis; nothing was changed, try again later."
            )
        )

    def take(self, now: float) -> list[bytes]:
        """Take the commands that are to be sent now, in one write."""
        commands: list[bytes] = []
        for places in (self._again, self._waiting):
            while places and len(self._sent) < MAX_SENT:
                place = places.popleft()
                if place.deadline <= now:
                    place.fail(TimeoutError(), sent=False)
                elif not place.answer.done():
                    place.sent_at = now
                    commands.append(self._with_text(place) if places is self._again else place.command)
                    self._sent.append(place)
        return commands

    def replied(self, reply: Any, now: float) -> None:
        """Bring the connection's next reply; an error reply is an exception.

        Raises
        ------
        InvalidResponse
            No call waits for a reply.
        """
        if not self._sent:
            raise InvalidResponse("a reply to no command")
        self.heard_at = now
        place = self._sent.popleft()
        if isinstance(reply, NoScriptError) and not place.with_text:
            self._again.append(place)
        elif isinstance(reply, Exception):
            place.fail(reply, sent=True)
        elif not place.answer.done():
            place.answer.set_result(reply)

    def lost(self, error: Exception) -> None:
        """Fail the calls that were sent: the connection ended. Those that wait can be sent on the next one."""
        while self._sent:
            self._sent.popleft().fail(error, sent=True)

    def refused(self, error: Exception) -> None:
        """Fail the calls that wait: no connection could be made."""
        for places in (self._again, self._waiting):
            while places:
                places.popleft().fail(error, sent=False)

    def expire(self, now: float) -> bool:
        """Fail the calls that are late. Returns whether the connection is silent: it has to be closed."""
        for places, sent in ((self._sent, True), (self._again, False)):
            for place in places:
                if place.deadline <= now:
                    place.fail(TimeoutError(), sent=sent)
        while self._waiting and self._waiting[0].deadline <= now:
            self._waiting.popleft().fail(TimeoutError(), sent=False)
        return self._silent_at() <= now

    def expire_at(self) -> float:
        """Time at which `expire` has to be called again at the latest."""
        places = chain(self._sent, self._again, self._waiting)
        return min([self._silent_at(), *(place.deadline for place in places if not place.answer.done())])

    def _silent_at(self) -> float:
        """When the connection counts as silent: a reply is late, and for half a deadline none has come."""
        if not self._sent:
            return inf
        first = self._sent[0]
        return max(first.deadline, max(first.sent_at, self.heard_at) + self._deadline_s / 2)

    def _with_text(self, place: _Place) -> bytes:
        """The command with its script's text, unless another one brings the same text just before."""
        script = place.call.script
        if any(sent.with_text and sent.call.script is script for sent in self._sent):
            return place.command
        place.with_text = True
        return pack(evaluate(place.call))
