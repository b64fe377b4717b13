"""Uvicorn on h11, set up for the gateway through public settings, with a `guard` around each connection."""

from __future__ import annotations

import logging
import socket
from functools import partial
from importlib.metadata import version
from typing import Any

import uvicorn

from .errors import MAX_HEAD_BYTES
from .guard import KEEP_ALIVE_S, Guard, Neighbours

#: Connections that may wait to be accepted.
BACKLOG = 2048
#: Earlier releases of h11 misread some malformed chunked bodies.
_H11_FLOOR = (0, 16)


class OutdatedServerError(Exception):
    """The installed h11 is too old to be safe."""


def server_config(app: Any, *, shutdown_grace_s: float, neighbours: Neighbours | None = None) -> uvicorn.Config:
    """Configure Uvicorn for `app`. Close `neighbours` when the server has stopped.

    Raises
    ------
    OutdatedServerError
    """
    installed = version("h11")
    if tuple(int(part) for part in installed.split(".")[:2]) < _H11_FLOOR:
        raise OutdatedServerError(f"h11 {installed} is too old; upgrade it: pip install 'h11>=0.16'.")
    settings: dict[str, Any] = {
        "ws": "none",
        "lifespan": "off",
        "log_config": None,
        # Uvicorn warns about each offer to upgrade; `guard` reports the rest of its warnings.
        "log_level": logging.ERROR,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": shutdown_grace_s,
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES,
    }
    stock = uvicorn.Config(app, http="h11", **settings)
    stock.load()
    guard: Any = partial(Guard, stock.http_protocol_class, neighbours or Neighbours())
    return uvicorn.Config(app, http=guard, **settings)


def listening_socket(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises
    ------
    OSError
        The address is in use, or belongs to another machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)
