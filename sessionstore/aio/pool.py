"""The pool of an asyncio store, for code that shares its Redis: the store's own calls share one connection."""

from __future__ import annotations

from typing import Any

import redis.asyncio

from ..options import StoreConfig
from ..transport.connect import client_options

Pool = redis.asyncio.BlockingConnectionPool


def pool_settings(config: StoreConfig) -> dict[str, Any]:
    """Options of the pool and its connections.

    No socket time-out: each call's deadline does its work, and redis-py would make a task for each command.
    """
    return {**client_options(config.deadline_s), "socket_timeout": None, "timeout": config.deadline_s / 2}


def pool_of_route(pool: Any) -> Any:
    """The pool of one more route: a link needs it only to know how to connect."""
    return pool
