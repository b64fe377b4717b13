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
from ..session import session_key_from_header

#: The request header that names a session.
SESSION_HEADER = "x-flowmock-session"
#: Where the session is in ``scope["state"]``.
STATE_KEY = "mock_session"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SessionMiddleware:
    """Look up the session that each HTTP request and websocket names, before the application is called.

    Parameters
    ----------
    app : ASGI application
    view : View
        An open view. With ``on_stale="raise"``, its `StaleView` comes out of the middleware.
    header : str
        The header that names the session.
    delay : bool
        Apply the session's global delay before the application is called.
    rng : random.Random, optional
        Where delays are drawn from.
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
            session = self._view.get(session_key_from_header(raw))
            # A server may share one state between requests (ASGI, lifespan state), so it is not written to in place.
            scope = {**scope, "state": {**scope.get("state", {}), STATE_KEY: session}}
            if self._delay and session is not None:
                delay_ms = session.delay_ms(self._rng)
                if delay_ms:
                    await asyncio.sleep(delay_ms / 1000)
        await self._app(scope, receive, send)
