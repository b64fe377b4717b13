"""What a failed call means: which error it is, and whether to send it again. No I/O.

A call is sent again if that is safe, and for a bounded time:

=================================================  =====================================
429, or 503 where nothing was changed              always
no connection to the gateway                       always, for 5 seconds
the answer was lost, or the effect is not known    unless the call has a precondition
too few views or replicas, and anything else       never
=================================================  =====================================
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ..errors import (
    AccessDeniedError,
    InvalidFieldError,
    InvalidInputError,
    InvalidOverrideError,
    InvalidQueryError,
    InvalidScenarioError,
    InvalidSessionKeyError,
    NotDurableError,
    NotEffectiveError,
    NotFoundError,
    OutcomeUnknownError,
    PreconditionFailedError,
    QuotaExceededError,
    RateLimitedError,
    SessionStoreError,
    StoreUnavailableError,
    TooFewViewsError,
)
from .calls import Answer, Call, read_confirmed, read_replicas, read_revision

T = TypeVar("T")

#: The class of each code of the API. Any other code gets its class from the status.
CLASSES: dict[str, type[SessionStoreError]] = {
    "unauthorized": AccessDeniedError,
    "scope_mismatch": AccessDeniedError,
    "not_found": NotFoundError,
    "precondition_failed": PreconditionFailedError,
    "quota_exceeded": QuotaExceededError,
    "invalid_body": InvalidFieldError,
    "invalid_override": InvalidOverrideError,
    "invalid_scenario": InvalidScenarioError,
    "invalid_session_key": InvalidSessionKeyError,
    "invalid_query": InvalidQueryError,
    "invalid_mode": InvalidQueryError,
    "project_required": InvalidQueryError,
    "environment_required": InvalidQueryError,
    "rate_limited": RateLimitedError,
    "internal_error": SessionStoreError,
    "store_unavailable": StoreUnavailableError,
    "too_many_connections": StoreUnavailableError,
    "outcome_unknown": OutcomeUnknownError,
    "not_effective": NotEffectiveError,
    "too_few_views": TooFewViewsError,
    "not_durable": NotDurableError,
}

#: Codes of calls that changed nothing, and may work later.
_NOTHING_DONE = {"rate_limited", "store_unavailable", "too_many_connections"}
#: Codes of calls that may have changed something: sending them again is safe without a precondition.
_PERHAPS_DONE = {"outcome_unknown", "not_effective"}

#: Seconds before the first repetition, at most, if the answer names none. Each further pause is twice as long.
_FIRST_PAUSE_S = 0.05
#: Seconds that such a pause grows to.
_LAST_PAUSE_S = 1.0

#: Seconds within which a restarting gateway is back. A gateway that was never started should be reported soon.
_RESTART_S = 5.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call failed, and whether to send it again."""

    error: SessionStoreError
    repeat: bool = False
    #: how long the gateway asks to wait
    retry_after_s: float = 0.0
    #: how long to go on at most
    retry_for_s: float = inf


class _ErrorDocument(Struct, frozen=True):
    error: str
    code: str


_decode_error = msgspec.json.Decoder(_ErrorDocument).decode


def read_answer(call: Call[T], answer: Answer, gateway: str) -> T | Failure:
    """Read the value of an answer, or what it failed with; `gateway` is how a message names the gateway."""
    if answer.status == 200:
        try:
            return call.read(answer)
        except (msgspec.DecodeError, ValueError, TypeError):
            return Failure(_lost(call, f"{gateway} answered with something else than this API's JSON"))
    try:
        document = _decode_error(answer.content)
    except msgspec.DecodeError:
        place = answer.headers.get("location")
        told = f"{gateway} answered {answer.status}" + (f" with the location {place}" if place else "")
        if answer.status >= 500:
            return Failure(_lost(call, told), call.repeatable, _retry_after_s(answer))
        return Failure(SessionStoreError(f"{told}, and not as the API does; is this the gateway's URL?"))
    return Failure(
        _error_of(document, answer),
        document.code in _NOTHING_DONE or (document.code in _PERHAPS_DONE and call.repeatable),
        _retry_after_s(answer),
    )


def lost_answer(call: Call[Any], reason: Exception, gateway: str, *, sent: bool) -> Failure:
    """Describe a call without an answer; `sent` tells whether the gateway may have received the request."""
    why = str(reason) or type(reason).__name__
    if sent:
        failure = Failure(_lost(call, f"{gateway} did not answer: {why}"), call.repeatable)
    else:
        sentence = f"{gateway} can't be reached: {why}. Nothing was changed; does a gateway run there?"
        failure = Failure(StoreUnavailableError(sentence), True, retry_for_s=_RESTART_S)
    failure.error.__cause__ = reason
    return failure


class Retry:
    """Says when to send one call again.

    Parameters
    ----------
    retry_for_s : float
        Seconds from now within which it is sent again.
    clock, draw : callable
        Seconds, monotonic; a random number from 0 to 1.
    """

    def __init__(
        self,
        retry_for_s: float,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._started = clock()
        self._retry_for_s = retry_for_s
        self._longest_s = _FIRST_PAUSE_S

    def pause_s(self, failure: Failure) -> float:
        """Seconds to wait before the call is sent again.

        Raises
        ------
        SessionStoreError
            The failure's: it is not sent again.
        """
        pause = max(failure.retry_after_s, self._longest_s * (1 + self._draw()) / 2)
        self._longest_s = min(2 * self._longest_s, _LAST_PAUSE_S)
        lasted = self._clock() + pause - self._started
        if not failure.repeat or lasted > min(self._retry_for_s, failure.retry_for_s):
            raise failure.error
        return pause


def _error_of(document: _ErrorDocument, answer: Answer) -> SessionStoreError:
    kind = CLASSES.get(document.code, InvalidInputError if answer.status < 500 else SessionStoreError)
    sentence = document.error
    if document.code == "internal_error" and "x-request-id" in answer.headers:
        sentence += f" Its log names request {answer.headers['x-request-id']}."
    if kind is NotEffectiveError:
        error: SessionStoreError = NotEffectiveError(sentence, read_revision(answer) or None)
    elif kind is TooFewViewsError:
        error = TooFewViewsError(sentence, read_revision(answer) or None, read_confirmed(answer))
    elif kind is NotDurableError:
        error = NotDurableError(sentence, read_revision(answer) or None, read_replicas(answer))
    else:
        error = kind(sentence)
    error.code = document.code
    return error


def _lost(call: Call[Any], told: str) -> StoreUnavailableError:
    if not call.writes:
        return StoreUnavailableError(f"{told}.")
    again = "sending it again is safe" if call.repeatable else "read the session to find out"
    return OutcomeUnknownError(f"{told}. The {call.method} was applied whole or not at all; {again}.")


def _retry_after_s(answer: Answer) -> float:
    """Seconds that the gateway asks to wait; a date, which only a server in between would send, is left out."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0
