"""Every use of what redis-py does not document, each with its reason.

tests/unit/transport/test_redis_internals.py fails when redis-py changes one of them.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.cluster import ClusterNode, NodesManager
from redis.connection import DefaultParser

#: Begins anew in a forked process that ran no fork hook. redis-py's own methods of a pool call it first.
check_process: Any = redis.ConnectionPool._checkpid


def idle_connections(pool: Any) -> list[Any]:
    """The list of a pool's idle connections. Our pools lend them without redis-py's metrics and second lock."""
    connections: list[Any] = pool._available_connections
    return connections


def lent_connections(pool: Any) -> set[Any]:
    """The set of a pool's lent connections. redis-py's own `disconnect` closes these, too, so it has to know them."""
    connections: set[Any] = pool._in_use_connections
    return connections


def pool_lock(pool: Any) -> Any:
    """The lock of a pool for threads. redis-py's own `disconnect` takes it to go through both collections."""
    return pool._lock


def replace_locks(pool: Any) -> None:
    """Unlock a pool in a forked process: a thread of the parent may have held its locks."""
    pool._lock = threading.RLock()
    pool._fork_lock = threading.RLock()


def write(connection: Any, commands: list[bytes]) -> None:
    """Have an asyncio connection send commands, without waiting. Its own method is a coroutine, and needs a task."""
    connection._writer.writelines(commands)


def abort(connection: Any) -> None:
    """End an asyncio connection at once. `disconnect` leaves a TLS one open until the server has said goodbye, too."""
    writer = getattr(connection, "_writer", None)
    if isinstance(writer, asyncio.StreamWriter):  # fakeredis has none
        writer.transport.abort()


def has_ended(connection: Any) -> bool:
    """Whether an asyncio connection has ended. Its own method is a coroutine, and needs a task."""
    ended: bool = connection._reader.at_eof() or connection._writer.transport.is_closing()
    return ended


def take_over(connection: Any, protocol: asyncio.Protocol) -> bool:
    """Have `protocol` read what an asyncio connection receives; False if it has no transport, as fakeredis.

    redis-py's own reading needs a task, and so another turn of the event loop. Nothing may be under way.

    Raises
    ------
    redis.ConnectionError
        It has ended.
    """
    writer = getattr(connection, "_writer", None)
    if not isinstance(writer, asyncio.StreamWriter):
        return False
    if has_ended(connection):
        raise redis.ConnectionError("The connection is closed.")
    writer.transport.set_protocol(protocol)
    return True


def socket_of(connection: Any) -> socket.socket | None:
    """The socket of a connection for threads; None if it has none, as fakeredis."""
    found = getattr(connection, "_sock", None)
    return found if isinstance(found, socket.socket) else None


def input_check(connection: Any) -> Callable[[], bool]:
    """A function that says whether a connection for threads, while idle, has received anything or has ended.

    Make it anew when it connects. Its own method reads, and raises within where there is nothing: three times as long.
    """
    found = socket_of(connection)
    # An answer may have arrived together with the one before it. hiredis keeps it elsewhere, and polls by itself.
    unread = getattr(connection._parser._buffer, "unread_bytes", None) if found is not None else None
    if found is None or unread is None or isinstance(found, ssl.SSLSocket) or not hasattr(select, "poll"):
        return lambda: _can_read(connection)
    poll = select.poll()
    poll.register(found, select.POLLIN)
    return lambda: bool(unread() or poll.poll(0))


def _can_read(connection: Any) -> bool:
    try:
        return bool(connection.can_read())
    except (redis.RedisError, OSError):
        return True


#: Makes redis-py's exception of the text of an error reply.
parse_error: Any = DefaultParser.parse_error


def shut_down(connection: Any) -> None:
    """End a connection that another thread reads. `disconnect` would take the parser from under that thread."""
    with suppress(AttributeError, OSError):
        connection._sock.shutdown(socket.SHUT_RDWR)


_ClusterNode: Any = ClusterNode


def cluster_table(nodes: Sequence[tuple[str, int]], remap: Any, options: dict[str, Any]) -> Any:
    """Read a cluster's slots into redis-py's table.

    RedisCluster itself would also read the list of all commands, which takes longer, and which a user may be denied.
    """
    return NodesManager(
        startup_nodes=[_ClusterNode(host, port) for host, port in nodes],
        from_url=True,  # the options are those of a pool
        require_full_coverage=False,
        address_remap=remap,
        **options,
    )


def forced_address(sentinel: Any) -> Any:
    """The address at which a redis-py Sentinel reaches every primary; None: the announced one."""
    return sentinel._force_master_ip
