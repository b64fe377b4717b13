"""How both drivers make redis-py clients, pools and connections."""

from __future__ import annotations

import inspect
import os
import re
import socket
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import redis.asyncio
import redis.exceptions as redis_errors
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from ..errors import InvalidInputError
from ..options import MAX_CONNECTIONS, StoreOptions
from ..protocol.calls import REPLICAS_RULE, is_number_of_replicas
from ..protocol.replies import ViewInfo, encode_view_info
from ..version import __version__
from . import redis_internals
from .topology import Address, Cluster, Sentinels, Site

#: The largest `max_connections`.
_MAX_CONNECTIONS = 10_000


#: Keys and values are UTF-8, even if the caller's client uses another encoding.
_ENCODING = {"encoding": "utf-8", "encoding_errors": "strict"}

#: Options of a client's connections that a store replaces.
_NOT_TAKEN = ("himport_", "maint_", "oss_cluster_", "response_callbacks", "retry")
#: The prefix of a URL's options for its sentinels.
_OF_SENTINELS = "sentinel_"
#: Options of TLS that name a file or folder. Otherwise a wrong one would look like a Redis that can't be reached.
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_URLS = (
    "A Redis URL is redis://[user:password@]host[:port][/database], redis+cluster://[user:password@]host[:port][,host…],"
    " redis+sentinel://[user:password@]sentinel[:port][,sentinel…]/service[/database], each also with rediss, or "
    "unix:///path with ?db= and &password=; percent-encode special characters in the user and password."
)


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


def pool_from_url(kind: Any, url: str, max_connections: int, settings: dict[str, Any]) -> tuple[Any, Site]:
    """Make a pool of class `kind` for a URL. Messages never quote the URL: it may contain a password.

    Raises
    ------
    InvalidInputError
    """
    if type(max_connections) is not int or not 1 <= max_connections <= _MAX_CONNECTIONS:
        raise InvalidInputError(f"max_connections must be a whole number from 1 to {_MAX_CONNECTIONS}.")
    try:
        plain, site = _locate(url)
        pool = kind.from_url(plain, max_connections=max_connections, **settings)
        pool.connection_kwargs.update(_ENCODING)
        if isinstance(site, Sentinels):
            own = {name for name in pool.connection_kwargs if name.startswith(_OF_SENTINELS)}
            options = {name.removeprefix(_OF_SENTINELS): pool.connection_kwargs.pop(name) for name in own}
            site = replace(site, options={**_encryption(pool), **options})
            # An unknown option fails here, too.
            redis.Redis(**site.options).close()
        # Make one connection without connecting, so that an unknown option fails here and not in the first call.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, AttributeError):
        raise InvalidInputError(_URLS) from None
    for name in _FILES:
        file = pool.connection_kwargs.get(name)
        if file is not None and not os.access(file, os.R_OK):
            raise InvalidInputError(f"{name} in a Redis URL must name a file that can be read.")
    if isinstance(site, Cluster) and database_of(pool):
        raise InvalidInputError("A Redis Cluster has the database 0 only; leave the database out of the URL.")
    return pool, site


def _locate(url: str) -> tuple[str, Site]:
    """The URL of one server, and what locates others."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if kind not in ("", "cluster", "sentinel") or (kind and scheme not in ("redis", "rediss")):
        raise ValueError("an unknown scheme")
    path = r"/*[^/].*" if scheme == "unix" else r"/[^/]+(/\d*)?/?" if kind == "sentinel" else r"/?\d*/?"
    if not re.fullmatch(path, parts.path):
        raise ValueError("a path of another kind")
    if not kind:
        return url, None
    user, at, hosts = parts.netloc.rpartition("@")
    if "@" in user:
        raise ValueError("a host with a user of its own")
    nodes = tuple(_address(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(","))
    site: Site = Cluster(nodes)
    database = parts.path
    if kind == "sentinel":
        _, service, *rest = parts.path.split("/")
        site, database = Sentinels(nodes, unquote(service)), "/".join(("", *rest))
    host, port = nodes[0]
    authority = f"{user}{at}[{host}]:{port}" if ":" in host else f"{user}{at}{host}:{port}"
    return urlunsplit((scheme, authority, database, parts.query, "")), site


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or "@" in text:
        raise ValueError("not a host")
    return parts.hostname, parts.port or port


def _encryption(pool: Any) -> dict[str, Any]:
    """The options with which a client connects to the sentinels of a pool: TLS as to the primary."""
    if not issubclass(pool.connection_class, redis.SSLConnection | redis.asyncio.SSLConnection):
        return {}
    return {"ssl": True} | {name: value for name, value in pool.connection_kwargs.items() if name.startswith("ssl_")}


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


def pool_like(kind: Any, client: Any, settings: dict[str, Any]) -> tuple[Any, Site]:
    """Make a pool of class `kind` with the addresses and credentials of a client that the caller owns.

    Its own pool is not used: redis-py might sleep and retry longer than a call may take.

    Raises
    ------
    InvalidInputError
    """
    asynchronous = issubclass(kind, redis.asyncio.ConnectionPool)
    connection_class, options, most, site = _parts_of(client, asynchronous)
    connect = getattr(connection_class, "connect", None)
    if connect is None or inspect.iscoroutinefunction(connect) is not asynchronous:
        library = "redis.asyncio" if asynchronous else "redis"
        raise InvalidInputError(
            f"The client must be a {library}.Redis of one primary or a {library}.RedisCluster, not a "
            f"{type(client).__name__}."
        )
    options = {name: value for name, value in options.items() if not name.startswith(_NOT_TAKEN)}
    pool = kind(
        connection_class=connection_class,
        max_connections=min(most, MAX_CONNECTIONS),
        **{**options, **settings, **_ENCODING},
    )
    return pool, site


def _parts_of(client: Any, asynchronous: bool) -> tuple[Any, dict[str, Any], int, Site]:
    """The class of a client's connections, their options, how many there may be, and what locates the primary."""
    pool: Any
    manager: Any
    if isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster):
        manager = client.nodes_manager
        nodes: list[Any] = list(manager.startup_nodes.values())
        pool = nodes[0]
        if isinstance(client, redis.RedisCluster):
            pool = client.get_redis_connection(pool).connection_pool
        options = dict(pool.connection_kwargs)
        # It selects READONLY, for clients that read from replicas.
        options.pop("redis_connect_func", None)
        site: Site = Cluster(tuple((each.host, each.port) for each in nodes), manager.address_remap)
        return pool.connection_class, options, pool.max_connections, site
    pool = getattr(client, "connection_pool", None)
    options = dict(getattr(pool, "connection_kwargs", {}))
    if not isinstance(pool, SentinelConnectionPool | AsyncSentinelConnectionPool):
        return getattr(pool, "connection_class", None), options, getattr(pool, "max_connections", 0), None
    if not pool.is_master:
        return None, {}, 0, None
    del options["connection_pool"]
    manager = pool.sentinel_manager
    addresses = [each.connection_pool.connection_kwargs for each in manager.sentinels]
    site = Sentinels(
        tuple((each["host"], each["port"]) for each in addresses),
        pool.service_name,
        manager.sentinel_kwargs,
        {
            "min_other_sentinels": manager.min_other_sentinels,
            "force_master_ip": redis_internals.forced_address(manager),
        },
    )
    library: Any = redis.asyncio if asynchronous else redis
    is_encrypted = issubclass(pool.connection_class, redis.SSLConnection | redis.asyncio.SSLConnection)
    return library.SSLConnection if is_encrypted else library.Connection, options, pool.max_connections, site


def database_of(pool: Any) -> int:
    """The number of the database that a pool's connections use."""
    return int(pool.connection_kwargs.get("db") or 0)


def show_address(pool: Any, address: Address | None) -> str:
    """An address for people: host:port, or the path of a socket. None is that of the pool's connections."""
    options = pool.connection_kwargs
    host, port = address or (options.get("path") or options.get("host", "localhost"), options.get("port", 6379))
    return host if "path" in options else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def new_connection(pool: Any, within_s: float, address: Address | None = None) -> Any:
    """Make a connection like the pool's, outside of it; it connects within `within_s` seconds or fails.

    It uses RESP2, in which whatever Redis sends is a plain reply. `address` is where it connects to, if not where the
    pool's connections do.
    """
    options = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith("maint_")}
    for name in ("socket_connect_timeout", "socket_timeout"):
        if options.get(name) is not None:
            options[name] = min(options[name], within_s)
    if address is not None:
        options["host"], options["port"] = address
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
