"""Calls on one connection: they leave in order, and the replies come in the order in which the calls left.

No I/O, no clock, no task. A driver sends what `take` returns, and brings each reply to `replied`::

    WAITING ──take──> SENT ──replied──> answered
       ^                │ └──lost─────> failed: the outcome of a write is unknown
       │                └──NOSCRIPT, or misrouted──┐
       └───────────────────────────────────────────┘
    WAITING ──refused, or late──> failed: nothing was changed

A caller that gives up leaves its place in the order. The reply to that place is dropped, so no other call takes it. A
call whose caller gives up before it is sent is never sent.

A script that Redis does not know has not run. Its call is sent again with the script's text, ahead of the calls that
wait. The calls that were sent meanwhile overtake it.

A server that can't serve a call has not run it either (`topology.is_misrouted`). If the primary may be elsewhere, such
a call waits for the next connection, ahead of the others. Nothing more is sent on this one, which ends when each call
that was sent has been answered.
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
from .topology import is_misrouted, without_address

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

    __slots__ = ("answer", "call", "command", "deadline", "needs_text", "sent_at", "with_text")

    def __init__(self, call: Call[Any], answer: Answer, deadline: float) -> None:
        self.call = call
        #: packed here, so that what can't be packed fails its caller only
        self.command = pack(evalsha(call))
        self.answer = answer
        self.deadline = deadline
        self.sent_at = 0.0
        #: whether the server has said that it does not know the script
        self.needs_text = False
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
    reroutes : bool
        Whether the primary may move, so that misrouted calls wait for the next connection.
    """

    def __init__(self, deadline_s: float, *, reroutes: bool = False) -> None:
        self._deadline_s = deadline_s
        self._reroutes = reroutes
        self._sent: deque[_Place] = deque()
        self._waiting: deque[_Place] = deque()
        #: calls that were sent and have not run: Redis did not know their scripts, or they were misrouted
        self._again: deque[_Place] = deque()
        #: why this connection must end
        self._misrouted: Exception | None = None
        #: why calls wait for the next connection, until it is there
        self._trouble: Exception | None = None
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
        if self._misrouted is not None:
            return commands
        trouble, self._trouble = self._trouble, None
        for places in (self._again, self._waiting):
            while places and len(self._sent) < MAX_SENT:
                place = places.popleft()
                if place.deadline <= now:
                    place.fail(trouble or TimeoutError(), sent=False)
                elif not place.answer.done():
                    place.sent_at = now
                    commands.append(self._with_text(place) if place.needs_text else place.command)
                    self._sent.append(place)
        return commands

    def replied(self, reply: Any, now: float) -> None:
        """Bring the connection's next reply; an error reply is an exception.

        Raises
        ------
        InvalidResponse
            No call waits for a reply.
        redis.exceptions.RedisError
            The connection has to end: calls were misrouted, and the others are answered.
        """
        if not self._sent:
            raise InvalidResponse("a reply to no command")
        self.heard_at = now
        place = self._sent.popleft()
        if isinstance(reply, NoScriptError) and not place.with_text:
            place.needs_text = True
            self._again.append(place)
        elif self._reroutes and isinstance(reply, Exception) and is_misrouted(reply):
            # Another server may know the script, or not.
            place.needs_text = place.with_text = False
            self._again.append(place)
            self._misrouted = reply
        elif isinstance(reply, Exception):
            place.fail(reply, sent=True)
        elif not place.answer.done():
            place.answer.set_result(reply)
        if self._misrouted is not None and not self._sent:
            raise self._misrouted

    def lost(self, error: Exception) -> None:
        """Fail the calls that were sent: the connection ended. Those that wait can be sent on the next one."""
        self._misrouted = None
        if self._reroutes and is_misrouted(error):
            self.delayed(error)
        while self._sent:
            self._sent.popleft().fail(error, sent=True)

    def delayed(self, error: Exception) -> None:
        """The next connection will be made later; calls that are late until then fail for this error."""
        self._trouble = without_address(error)

    @property
    def is_delayed(self) -> bool:
        """Whether to pause before the next connection is made."""
        return self._trouble is not None

    def refused(self, error: Exception) -> None:
        """Fail the calls that wait: no connection could be made."""
        for places in (self._again, self._waiting):
            while places:
                places.popleft().fail(error, sent=False)

    def expire(self, now: float) -> bool:
        """Fail the calls that are late. Returns whether the connection is silent: it has to be closed."""
        late = self._trouble or TimeoutError()
        for places, sent in ((self._sent, True), (self._again, False)):
            for place in places:
                if place.deadline <= now:
                    place.fail(TimeoutError() if sent else late, sent=sent)
        while self._waiting and self._waiting[0].deadline <= now:
            self._waiting.popleft().fail(late, sent=False)
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
