"""How both drivers make redis-py clients, pools and connections."""

from __future__ import annotations

import inspect
import os
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio
import redis.exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import InvalidInputError
from ..options import MAX_CONNECTIONS, StoreOptions
from ..protocol.calls import REPLICAS_RULE, is_number_of_replicas
from ..protocol.replies import ViewInfo, encode_view_info
from ..version import __version__

#: The largest `max_connections`.
_MAX_CONNECTIONS = 10_000


#: Keys and values are UTF-8, even if the caller's client uses another encoding.
_ENCODING = {"encoding": "utf-8", "encoding_errors": "strict"}


def client_options(deadline_s: float) -> dict[str, Any]:
    """Options for a client of our own: short time-outs, and no retries.

    If the answer is lost, the script may have run.
    """
    return {
        "socket_connect_timeout": deadline_s / 2,
        "socket_timeout": deadline_s / 2,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }


def pool_from_url(kind: Any, url: str, max_connections: int, settings: dict[str, Any]) -> Any:
    """Make a pool of class `kind` for a URL. Messages never quote the URL: it may contain a password.

    Raises
    ------
    InvalidInputError
    """
    if type(max_connections) is not int or not 1 <= max_connections <= _MAX_CONNECTIONS:
        raise InvalidInputError(f"max_connections must be a whole number from 1 to {_MAX_CONNECTIONS}.")
    try:
        parts = urlsplit(url)
        path = r"/*[^/].*" if parts.scheme == "unix" else r"/?\d*/?"
        if re.fullmatch(path, parts.path):
            pool = kind.from_url(url, max_connections=max_connections, **settings)
            pool.connection_kwargs.update(_ENCODING)
            # Make one connection without connecting, so that an unknown option fails here and not in the first call.
            pool.connection_class(**pool.connection_kwargs)
            return pool
    except (ValueError, TypeError, AttributeError):
        pass
    raise InvalidInputError(
        "A Redis URL is redis://[user:password@]host[:port][/database], the same with rediss://, or unix:///path with "
        "?db= and &password=; percent-encode special characters in the user and password."
    )


def take_replicas(url: str, options: StoreOptions) -> str:
    """Take ``replicas=N`` out of a URL's query, into `options` unless they have it. Returns the rest of the URL.

    Raises
    ------
    InvalidInputError
    """
    if not isinstance(url, str):
        return url  # `pool_from_url` rejects it
    address, _, query = url.partition("?")
    parts = query.split("&")
    values = [part.removeprefix("replicas=") for part in parts if part.startswith("replicas=")]
    if not values:
        return url
    replicas = int(values[0]) if re.fullmatch(r"[0-9]{1,9}", values[0]) else -1
    if len(values) > 1 or not is_number_of_replicas(replicas):
        raise InvalidInputError(f"replicas in a Redis URL {REPLICAS_RULE}, given once.")
    options.setdefault("replicas", replicas)
    rest = "&".join(part for part in parts if not part.startswith("replicas="))
    return f"{address}?{rest}" if rest else address


def check_url(url: str) -> str:
    """Check a Redis URL as a store would, without connecting; returns it.

    Raises
    ------
    InvalidInputError
    """
    pool_from_url(redis.ConnectionPool, take_replicas(url, {}), 1, {})
    return url


def pool_like(kind: Any, client: Any, settings: dict[str, Any]) -> Any:
    """Make a pool of class `kind` with the address and credentials of a client that the caller owns.

    Its own pool is not used: redis-py might sleep and retry longer than a call may take.

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


def database_of(pool: Any) -> int:
    """The number of the database that a pool's connections use."""
    return int(pool.connection_kwargs.get("db") or 0)


def new_connection(pool: Any, within_s: float) -> Any:
    """Make a connection like the pool's, outside of it; it connects within `within_s` seconds or fails.

    It uses RESP2, in which whatever Redis sends is a plain reply.
    """
    options = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith("maint_")}
    for name in ("socket_connect_timeout", "socket_timeout"):
        if options.get(name) is not None:
            options[name] = min(options[name], within_s)
    return pool.connection_class(**{**options, "protocol": 2, "retry": Retry(NoBackoff(), 0)})


def never_reconnect(link: Any) -> None:
    """Keep a connection from reconnecting: once it is down, every use of it fails.

    After a failed send, a redis-py connection silently reconnects at its next use, without its subscriptions.
    """

    def refuse(*_: Any, **__: Any) -> Any:
        raise redis_errors.ConnectionError("The connection is closed.")

    link.connect = link.connect_check_health = refuse


def describe_process() -> str:
    """How a view of this process describes itself to operators, as JSON."""
    return encode_view_info(ViewInfo(socket.gethostname(), os.getpid(), __version__))
