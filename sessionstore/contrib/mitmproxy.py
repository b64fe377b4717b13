"""A mitmproxy addon: each flow's session in ``flow.metadata["mock_session"]``.

Load it together with an addon of your own that answers the mocked requests::

    mitmdump -s your_mocks.py --set sessionstore_project=checkout --set sessionstore_environment=staging

where ``your_mocks.py`` says ``addons = [SessionStoreAddon(), YourMocks()]``.
"""

from __future__ import annotations

import asyncio

from mitmproxy import ctx, exceptions, http
from mitmproxy.addonmanager import Loader

from ..aio.store import AsyncEnvironment, AsyncSessionStore
from ..aio.view import AsyncView
from ..errors import InvalidInputError
from ..session import session_key_from_header
from .asgi import SESSION_HEADER, STATE_KEY

__all__ = ["SessionStoreAddon"]


class SessionStoreAddon:
    """Look up the session that each request names; put it before the addons that use it.

    Options: ``sessionstore_url`` (Redis), ``sessionstore_project``, ``sessionstore_environment``, and
    ``sessionstore_delay`` (apply the session's global delay).
    """

    def __init__(self) -> None:
        self.view: AsyncView | None = None
        self._place: tuple[str, str, str] | None = None
        self._store: AsyncSessionStore | None = None
        self._environment: AsyncEnvironment | None = None

    def load(self, loader: Loader) -> None:
        """Declare the options."""
        loader.add_option("sessionstore_url", str, "redis://localhost:6379/0", "Redis that holds the sessions.")
        loader.add_option("sessionstore_project", str, "", "Project whose sessions are served.")
        loader.add_option("sessionstore_environment", str, "", "Environment whose sessions are served.")
        loader.add_option("sessionstore_delay", bool, False, "Apply each session's global delay.")

    def configure(self, updated: set[str]) -> None:
        """Check the options; nothing connects yet."""
        options = ctx.options
        place = (options.sessionstore_url, options.sessionstore_project, options.sessionstore_environment)
        if place == self._place:
            return
        if self.view is not None:
            raise exceptions.OptionsError(  # type: ignore[no-untyped-call]
                "sessionstore: whose sessions are served can't be changed while the proxy runs; start it anew."
            )
        if not all(place):
            raise exceptions.OptionsError(  # type: ignore[no-untyped-call]
                "sessionstore: say whose sessions are served, with --set sessionstore_project=… and "
                "--set sessionstore_environment=…"
            )
        try:
            self._store = AsyncSessionStore.from_url(place[0])
            self._environment = self._store.environment(*place[1:])
        except InvalidInputError as exc:
            # mitmproxy prints the whole chain.
            raise exceptions.OptionsError(f"sessionstore: {exc}") from None  # type: ignore[no-untyped-call]
        self._place = place

    async def running(self) -> None:
        """Open the view. The proxy serves meanwhile, and until the view is in touch no request has a session."""
        if self._environment is not None:
            self.view = await self._environment.view(wait=False).open()

    async def done(self) -> None:
        """Leave, so that no writer waits for this proxy."""
        if self.view is not None:
            await self.view.aclose()
        if self._store is not None:
            await self._store.aclose()

    async def request(self, flow: http.HTTPFlow) -> None:
        """Put the session into the flow's metadata, and wait for its delay if that is asked for."""
        raw = next((value for name, value in flow.request.headers.fields if name.lower() == _HEADER), None)
        session = None if self.view is None else self.view.get(session_key_from_header(raw))
        flow.metadata[STATE_KEY] = session
        if session is not None and ctx.options.sessionstore_delay:
            delay_ms = session.delay_ms()
            if delay_ms:
                await asyncio.sleep(delay_ms / 1000)


_HEADER = SESSION_HEADER.encode()
