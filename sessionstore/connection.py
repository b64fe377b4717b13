"""What both drivers share of redis-py: how clients are made, and what its errors mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio
import redis.exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from .commands import Call
from .config import CLOSED, MAX_CONNECTIONS
from .errors import (
    CorruptDataError,
    InvalidInputError,
    OutcomeUnknownError,
    SessionStoreError,
    StoreClosedError,
    StoreUnavailableError,
)

__all__ = [
    "FOREIGN_ERRORS",
    "check_url",
    "client_options",
    "closed_error",
    "database_of",
    "decode_all",
    "describe_loss",
    "evalsha",
    "evaluate",
    "is_refusal",
    "never_reconnect",
    "new_link",
    "pack",
    "pool_from_url",
    "pool_like",
    "translate",
]

#: Connections that one store may be asked for, at most.
_MAX_CONNECTIONS = 10_000

#: What redis-py, the socket and a deadline raise. A ValueError is redis-py's parser's, for a number that is none, and
#: for text that is not UTF-8 where the client decodes responses.
FOREIGN_ERRORS = (redis_errors.RedisError, OSError, TimeoutError, ValueError)

#: Keys and values are UTF-8, whatever the caller's client makes of its own.
_ENCODING = {"encoding": "utf-8", "encoding_errors": "strict"}

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


def client_options(deadline_s: float) -> dict[str, Any]:
    """Options for a client of our own: short time-outs, and no retries.

    A script whose answer is lost may have run.
    """
    return {
        "socket_connect_timeout": deadline_s / 2,
        "socket_timeout": deadline_s / 2,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }


def pool_from_url(kind: Any, url: str, max_connections: int, settings: dict[str, Any]) -> Any:
    """Make a pool of class `kind` for a URL, checked whole; a message never quotes the URL, which may hold a password.

    Raises
    ------
    InvalidInputError
    """
    if type(max_connections) is not int or not 1 <= max_connections <= _MAX_CONNECTIONS:
        raise InvalidInputError(f"max_connections must be a whole number from 1 to {_MAX_CONNECTIONS}.")
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            fine = parts.path.strip("/") != ""
        else:
            fine = re.fullmatch(r"/?\d*/?", parts.path) is not None
        if fine:
            pool = kind.from_url(url, max_connections=max_connections, **settings)
            pool.connection_kwargs.update(_ENCODING)
            # Made once and dropped, unconnected: an option that no connection takes shows here, not in the first call.
            pool.connection_class(**pool.connection_kwargs)
            return pool
    except (ValueError, TypeError, AttributeError):
        pass
    raise InvalidInputError(
        "A Redis URL is redis://[user:password@]host[:port][/database], the same with rediss://, or unix:///path with "
        "?db= and &password=; percent-encode what a user or password holds besides letters and digits."
    )


def check_url(url: str) -> str:
    """Check a Redis URL as a store would, without connecting; returns it.

    Raises
    ------
    InvalidInputError
    """
    pool_from_url(redis.ConnectionPool, url, 1, {})
    return url


def pool_like(kind: Any, client: Any, settings: dict[str, Any]) -> Any:
    """Make a pool of class `kind` with the address and credentials of a client that the caller owns.

    Its own pool is not used: on the way to a connection redis-py would sleep and retry for longer than a call may take.

    Raises
    ------
    InvalidInputError
    """
    asynchronous = issubclass(kind, redis.asyncio.ConnectionPool)
    pool: Any = getattr(client, "connection_pool", None)
    connect = getattr(getattr(pool, "connection_class", None), "connect", None)
    if pool is None or connect is None or inspect.iscoroutinefunction(connect) is not asynchronous:
        wanted = "redis.asyncio.Redis" if asynchronous else "redis.Redis"
        raise InvalidInputError(f"The client must be a {wanted} of one primary, not a {type(client).__name__}.")
    options = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if not name.startswith(("maint_", "retry", "oss_cluster_"))
    }
    return kind(
        connection_class=pool.connection_class,
        max_connections=min(pool.max_connections, MAX_CONNECTIONS),
        **{**options, **settings, **_ENCODING},
    )


def evalsha(call: Call[Any]) -> tuple[Any, ...]:
    """The command that runs a script which Redis knows."""
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)


def pack(parts: Sequence[str | int]) -> bytes:
    """One command as Redis reads it. redis-py's own packing takes five times as long: it joins bytes at each part."""
    texts = [part if type(part) is str else str(part) for part in parts]
    packed = "".join([f"*{len(texts)}\r\n", *[f"${len(text)}\r\n{text}\r\n" for text in texts]])
    if packed.isascii():
        return packed.encode()
    coded = [text.encode() for text in texts]
    return b"".join([b"*%d\r\n" % len(coded), *[b"$%d\r\n%b\r\n" % (len(text), text) for text in coded]])


def evaluate(call: Call[Any]) -> tuple[Any, ...]:
    """The command that runs a script which Redis has forgotten, and has it remember it."""
    return ("EVAL", call.script.text, len(call.keys), *call.keys, *call.args)


def decode_all(calls: Sequence[Call[Any]], payloads: Sequence[Any]) -> list[Any]:
    """Decode the answers of several calls; an error stands in the place of its answer."""
    results: list[Any] = []
    for call, payload in zip(calls, payloads, strict=True):
        if isinstance(payload, Exception):
            results.append(translate(payload, call, sent=True))
            continue
        try:
            results.append(call.decode(payload))
        except SessionStoreError as exc:
            results.append(exc)
    return results


def database_of(pool: Any) -> int:
    """The number of the database that a pool's connections use."""
    return int(pool.connection_kwargs.get("db") or 0)


def new_link(pool: Any, within_s: float) -> Any:
    """Make a connection like the pool's for a subscription; it is made `within_s` seconds or not at all.

    RESP2: there, whatever arrives is a plain reply.
    """
    options = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith("maint_")}
    for name in ("socket_connect_timeout", "socket_timeout"):
        if options.get(name) is not None:
            options[name] = min(options[name], within_s)
    return pool.connection_class(**{**options, "protocol": 2, "retry": Retry(NoBackoff(), 0)})


def never_reconnect(link: Any) -> None:
    """Have a link that is connected stay what it is: once it is down, whatever uses it fails.

    A connection of redis-py's connects again where it is used after it has failed to send, without a word, and without
    its subscriptions.
    """

    def refuse(*_: Any, **__: Any) -> Any:
        raise redis_errors.ConnectionError("The connection is closed.")

    link.connect = link.connect_check_health = refuse


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
