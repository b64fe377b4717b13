"""A WSGI middleware: each request's session in ``environ["sessionstore.session"]``.

::

    app = SessionMiddleware(app, view)

    session = environ["sessionstore.session"]                # a Session, or None
    session = flask.request.environ["sessionstore.session"]

Open the view in the process that serves: with gunicorn, in `post_fork`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..replica.view import BaseView
from ..session import SESSION_HEADER

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

#: Where the session is in the environ.
ENVIRON_KEY = "sessionstore.session"


class SessionMiddleware:
    """Look up the session of each request, then call the application.

    Parameters
    ----------
    app : WSGI application
    view : View
        A view that is open when requests come. With ``on_stale="raise"``, the middleware raises its `StaleView`.
    header : str
        The header that names the session.
    delay : bool
        Apply the session's global delay before calling the application. It occupies the request's thread.
    rng : random.Random, optional
        The source of random delays.
    """

    def __init__(
        self,
        app: WSGIApplication,
        view: BaseView,
        *,
        header: str = SESSION_HEADER,
        delay: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self._app = app
        self._view = view
        self._variable = f"HTTP_{header.upper().replace('-', '_')}"
        self._delay = delay
        self._rng = rng

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:  # noqa: D102
        session = self._view.get_by_header(environ.get(self._variable))
        environ[ENVIRON_KEY] = session
        if self._delay and session is not None:
            delay_ms = session.delay_ms(self._rng)
            if delay_ms:
                time.sleep(delay_ms / 1000)
        return self._app(environ, start_response)
