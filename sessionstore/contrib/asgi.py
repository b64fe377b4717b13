"""An ASGI middleware: each request's session in ``scope["state"]``.

::

    async with staging.view() as view:
        app = SessionMiddleware(app, view)

    session = request.state.mock_session      # in Starlette and FastAPI; a Session, or None
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..replica.view import BaseView
from ..session import SESSION_HEADER, Session

#: Where the session is in ``scope["state"]``.
STATE_KEY = "mock_session"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SessionMiddleware:
    """Look up the session of each HTTP request and websocket, then call the application.

    Parameters
    ----------
    app : ASGI application
    view : View
        An open view. With ``on_stale="raise"``, the middleware raises its `StaleView`.
    header : str
        The header that names the session.
    delay : bool
        Apply the session's global delay before calling the application.
    rng : random.Random, optional
        The source of random delays.
    """

    def __init__(
        self,
        app: App,
        view: BaseView,
        *,
        header: str = SESSION_HEADER,
        delay: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self._app = app
        self._view = view
        self._header = header.lower().encode("latin-1")
        self._delay = delay
        self._rng = rng

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] in ("http", "websocket"):
            raw = next((value for name, value in scope["headers"] if name == self._header), None)
            session = self._view.get_by_header(raw)
            # Copy the state: an ASGI server may share it between requests.
            scope = {**scope, "state": {**scope.get("state", {}), STATE_KEY: session}}
            if self._delay and session is not None:
                await apply_delay(session, self._rng)
        await self._app(scope, receive, send)


async def apply_delay(session: Session, rng: random.Random | None = None) -> None:
    """Sleep for the session's global delay, if it has any."""
    delay_ms = session.delay_ms(rng)
    if delay_ms:
        await asyncio.sleep(delay_ms / 1000)
