"""The meaning of redis-py's errors: each becomes one of ours, without host, password or data."""

from __future__ import annotations

import re
from typing import Any

import redis.exceptions as redis_errors

from ..errors import (
    CorruptDataError,
    IncompatibleLayoutError,
    OutcomeUnknownError,
    SessionStoreError,
    StoreClosedError,
    StoreUnavailableError,
)
from ..options import CLOSED
from ..protocol.calls import Call
from ..protocol.keyspace import LAYOUT

#: What redis-py, the socket and a deadline raise. A ValueError is redis-py's parser's, for a number that is none, and
#: for text that is not UTF-8 where the client decodes responses.
FOREIGN_ERRORS = (redis_errors.RedisError, OSError, TimeoutError, ValueError)

#: What a Redis that has fewer databases answers begins with ERR, as much does.
_NO_DATABASE = "DB index is out of range"

#: What Redis answers when it is there but refuses for now, by the error's first word.
_REFUSALS = {
    "BUSY": "is busy with a long script",
    _NO_DATABASE: "has no database of the number in the URL",
    "CLUSTERDOWN": "is down as a cluster",
    "LOADING": "is still loading its data",
    "MASTERDOWN": "has lost its primary",
    "MISCONF": "can't save to disk and so refuses writes",
    "NOAUTH": "asks for a password; put it into the URL",
    "NOPERM": "denies this user the command or keys; see the permissions in docs/operations.md",
    "NOREPLICAS": "has too few replicas and so refuses writes",
    "OOM": "is out of memory",
    "READONLY": "is a read-only replica",
    "TRYAGAIN": "is moving its data",
    "WRONGPASS": "refuses the password in the URL",
}

#: Those that do not pass by themselves.
_LASTING = (_NO_DATABASE, "NOAUTH", "NOPERM", "WRONGPASS")

_REFUSAL_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.NoPermissionError, "NOPERM"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
    (redis_errors.TryAgainError, "TRYAGAIN"),
)


#: What lib/layout.lua says.
_LAYOUT = re.compile(r"SSLAYOUT (\w+)")


def describe_loss(error: Exception) -> str:
    """Why a link ended, in a few words, without host or data."""
    if isinstance(error, redis_errors.RedisError):
        word = _refusal(error)
        return f"Redis {_REFUSALS[word]}" if word else "the connection to Redis broke"
    return "the connection to Redis broke" if isinstance(error, OSError) else str(error)


def translate(error: Exception, call: Call[Any], *, sent: bool) -> SessionStoreError:
    """Our error for one of `FOREIGN_ERRORS`; never quotes a host, a password or data.

    `sent` says that the script was on its way, so that without an answer it may have run.
    """
    word = _refusal(error)
    if word is not None:
        again = "" if word in _LASTING else ", try again later"
        return StoreUnavailableError(f"Redis {_REFUSALS[word]}; nothing was changed{again}.")
    if isinstance(error, redis_errors.ResponseError):
        layout = _LAYOUT.search(str(error))
        if layout is not None:
            return IncompatibleLayoutError(
                f"Redis holds this environment in layout {layout[1]}, and this release needs layout {LAYOUT}; nothing "
                "was changed. Follow the steps of an upgrade in CHANGELOG.md."
            )
        return CorruptDataError(_unexpected(str(error), call))
    slow = isinstance(error, redis_errors.TimeoutError | TimeoutError)
    what = "did not answer in time" if slow else "can't be reached"
    if isinstance(error, redis_errors.InvalidResponse | ValueError):
        what = "answered something that is not its protocol"
    if isinstance(error, redis_errors.MaxConnectionsError):
        what, sent = "has no connection left in this store's pool", False
    if sent and call.writes:
        return OutcomeUnknownError(
            f"Redis {what} after the write was sent: it was applied whole or not at all; a PUT is safe to send again."
        )
    return StoreUnavailableError(f"Redis {what}; nothing was changed, try again later.")


def closed_error(error: SessionStoreError) -> SessionStoreError:
    """What an error means where the store was closed meanwhile: a connection that broke is no fault of Redis then."""
    if type(error) is not StoreUnavailableError:
        return error
    closed = StoreClosedError(CLOSED)
    closed.__cause__ = error
    return closed


def is_refusal(error: Exception) -> bool:
    """Whether Redis is there but refuses for now."""
    return _refusal(error) is not None


def _refusal(error: Exception) -> str | None:
    """The key of `_REFUSALS` for an error that is one."""
    for kind, word in _REFUSAL_CLASSES:
        if isinstance(error, kind):
            return word
    if isinstance(error, redis_errors.AuthenticationError):
        word = getattr(error, "status_code", None) or ""
        return word if word in _REFUSALS else "WRONGPASS"
    if isinstance(error, redis_errors.ResponseError):
        word = _NO_DATABASE if _NO_DATABASE in str(error) else str(error).split(" ", 1)[0]
        return word if word in _REFUSALS else None
    return None


def _unexpected(message: str, call: Call[Any]) -> str:
    if "SSCORRUPT" in message or "WRONGTYPE" in message:
        return (
            "A key of this session or environment in Redis holds something that this library did not write; look at "
            "the keys with redis-cli and delete the one that is wrong."
        )
    return f"Redis could not run the script {call.script.name!r}; is it 7.0 or newer, with Lua scripts allowed?"
