"""The meaning of redis-py's errors: each becomes one of ours, without host, password or data."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

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

#: The errors of redis-py, the socket and a deadline. redis-py's parser raises ValueError for a malformed number and
#: for text that is not UTF-8.
FOREIGN_ERRORS = (redis_errors.RedisError, OSError, TimeoutError, ValueError)

#: Redis reports these with the generic prefix ERR, so match the text.
_NO_DATABASE = "DB index is out of range"
_NO_CLUSTER = "cluster support disabled"
_NO_SENTINEL = "unknown command 'SENTINEL'"
#: In the text of each error that a server's certificate causes, whatever its class.
_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"


class _Refusal(NamedTuple):
    text: str
    #: the class that redis-py raises for it, without the first word of the message
    kind: type[Exception] | None = None
    #: waiting does not help
    lasting: bool = False


#: Refusals of a Redis that can be reached, by the first word of the error or by what it contains.
_REFUSALS = {
    "BUSY": _Refusal("is busy with a long script"),
    _CERTIFICATE: _Refusal(
        "has a certificate that is not trusted or not for its address; see rediss:// in docs/operations.md",
        lasting=True,
    ),
    _NO_CLUSTER: _Refusal("is not a cluster; give its URL as redis://", lasting=True),
    _NO_DATABASE: _Refusal("has no database of the number in the URL", lasting=True),
    _NO_SENTINEL: _Refusal("is not a sentinel; see the forms of a URL in docs/library.md", lasting=True),
    # MASTERDOWN first: redis-py derives its class from that of CLUSTERDOWN.
    "MASTERDOWN": _Refusal("has lost its primary", redis_errors.MasterDownError),
    "CLUSTERDOWN": _Refusal("reports that its cluster is down", redis_errors.ClusterDownError),
    "LOADING": _Refusal("is still loading its data", redis_errors.BusyLoadingError),
    "MISCONF": _Refusal("can't save to disk and so refuses writes"),
    # A store on a cluster or on sentinels goes elsewhere instead, and never reports this.
    "MOVED": _Refusal("is a cluster; give its URL as redis+cluster://", redis_errors.MovedError, lasting=True),
    "NOAUTH": _Refusal("asks for a password; put it into the URL", lasting=True),
    "NOPERM": _Refusal(
        "denies this user the command or keys; see the permissions in docs/operations.md",
        redis_errors.NoPermissionError,
        lasting=True,
    ),
    "NOREPLICAS": _Refusal("has too few replicas and so refuses writes"),
    "OOM": _Refusal("is out of memory", redis_errors.OutOfMemoryError),
    "READONLY": _Refusal("is a read-only replica", redis_errors.ReadOnlyError),
    "TRYAGAIN": _Refusal("is moving its data", redis_errors.TryAgainError),
    "WRONGPASS": _Refusal("refuses the password in the URL", lasting=True),
}

#: The error of lib/layout.lua.
_LAYOUT = re.compile(r"SSLAYOUT (\w+)")


def describe_loss(error: Exception) -> str:
    """Why a connection ended, in a few words, without host or data."""
    refusal = _refusal(error)
    if refusal is not None:
        return f"Redis {refusal.text}"
    return "the connection to Redis broke" if isinstance(error, redis_errors.RedisError | OSError) else str(error)


def translate(error: Exception, call: Call[Any], *, sent: bool) -> SessionStoreError:
    """Our error for one of `FOREIGN_ERRORS`; never quotes a host, a password or data.

    `sent`: the script was sent, so it may have run even if no answer came.
    """
    refusal = _refusal(error)
    if refusal is not None:
        again = "" if refusal.lasting else ", try again later"
        return StoreUnavailableError(f"Redis {refusal.text}; nothing was changed{again}.")
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
    """The error to raise after the store was closed: it broke its connections itself."""
    if type(error) is not StoreUnavailableError:
        return error
    closed = StoreClosedError(CLOSED)
    closed.__cause__ = error
    return closed


def is_refusal(error: Exception) -> bool:
    """Whether Redis can be reached but refuses the command."""
    return _refusal(error) is not None


def is_lasting(error: Exception) -> bool:
    """Whether Redis refuses the command, and trying again will not help."""
    refusal = _refusal(error)
    return refusal is not None and refusal.lasting


def _refusal(error: Exception) -> _Refusal | None:
    for refusal in _REFUSALS.values():
        if refusal.kind is not None and isinstance(error, refusal.kind):
            return refusal
    if isinstance(error, redis_errors.AuthenticationError):
        return _REFUSALS.get(getattr(error, "status_code", None) or "", _REFUSALS["WRONGPASS"])
    if isinstance(error, redis_errors.ResponseError):
        text = str(error)
        known = next((part for part in (_NO_CLUSTER, _NO_DATABASE, _NO_SENTINEL) if part in text), None)
        return _REFUSALS.get(known or text.split(" ", 1)[0])
    return _REFUSALS[_CERTIFICATE] if _CERTIFICATE in str(error) else None


def _unexpected(message: str, call: Call[Any]) -> str:
    if "SSCORRUPT" in message or "WRONGTYPE" in message:
        return (
            "A key of this session or environment in Redis holds data that this library did not write; look at the "
            "keys with redis-cli and delete the wrong one."
        )
    return f"Redis could not run the script {call.script.name!r}; is it 7.0 or newer, with Lua scripts allowed?"
