"""A mitmproxy addon: each flow's session in ``flow.metadata["mock_session"]``.

Load it together with an addon of your own that answers the mocked requests::

    mitmdump -s your_mocks.py --set sessionstore_project=checkout --set sessionstore_environment=staging

where ``your_mocks.py`` says ``addons = [SessionStoreAddon(), YourMocks()]``. An option's default is the
environment variable of the same setting, such as `SESSIONSTORE_REDIS_URL`. Don't put a password on a command line.
"""

from __future__ import annotations

import os

from mitmproxy import ctx, exceptions, http
from mitmproxy.addonmanager import Loader

from ..aio.environment import AsyncEnvironment
from ..aio.store import AsyncSessionStore
from ..aio.view import AsyncView
from ..errors import InvalidInputError
from ..options import DEFAULT_LEASE_S, DEFAULT_TTL_S
from ..protocol.keyspace import DEFAULT_PREFIX
from ..session import SESSION_HEADER
from ..variables import parse_seconds, show_seconds
from .asgi import STATE_KEY, apply_delay


class SessionStoreAddon:
    """Look up the session of each request. List it before the addons that use it.

    Options: ``sessionstore_url`` (Redis), ``sessionstore_project``, ``sessionstore_environment``;
    ``sessionstore_prefix``, ``sessionstore_ttl`` and ``sessionstore_lease`` (seconds), which must equal the gateway's;
    ``sessionstore_delay`` (apply the session's global delay); and ``sessionstore_forward_header`` (send the session's
    header to the server, too).

    Attributes
    ----------
    view : AsyncView or None
        The view, with the catalog; None until mitmproxy runs.
    """

    def __init__(self) -> None:
        self.view: AsyncView | None = None
        self._settings: tuple[str, ...] | None = None
        self._store: AsyncSessionStore | None = None
        self._environment: AsyncEnvironment | None = None

    def load(self, loader: Loader) -> None:
        """Declare the options."""
        for name, variable, default, meaning in _SETTINGS:
            loader.add_option(name, str, os.environ.get(variable) or default, meaning)
        loader.add_option("sessionstore_delay", bool, False, "Apply each session's global delay.")
        loader.add_option("sessionstore_forward_header", bool, False, "Send the session's header to the server, too.")

    def configure(self, updated: set[str]) -> None:
        """Check the options; nothing connects yet."""
        settings = tuple(getattr(ctx.options, name) for name, *_ in _SETTINGS)
        if settings == self._settings:
            return
        if self.view is not None:
            raise _refusal("the sessionstore options can't change while the proxy runs; restart it.")
        url, project, environment, prefix, ttl, lease = settings
        if not (url and project and environment):
            raise _refusal("name the environment: --set sessionstore_project=… --set sessionstore_environment=…")
        try:
            self._store = AsyncSessionStore.from_url(
                url, prefix=prefix, ttl_s=_seconds("ttl", ttl), lease_s=_seconds("lease", lease)
            )
            self._environment = self._store.environment(project, environment)
        except InvalidInputError as exc:
            # mitmproxy prints the whole chain.
            raise _refusal(str(exc)) from None
        self._settings = settings

    async def running(self) -> None:
        """Open the view. Requests have no session until the view is in touch with Redis."""
        if self._environment is not None:
            self.view = await self._environment.view(wait=False).open()

    async def done(self) -> None:
        """Close the view, so that no writer waits for this proxy."""
        if self.view is not None:
            await self.view.aclose()
        if self._store is not None:
            await self._store.aclose()

    async def request(self, flow: http.HTTPFlow) -> None:
        """Put the session into the flow's metadata, remove its header, and apply its delay if the option is on."""
        raw = next((value for name, value in flow.request.headers.fields if name.lower() == _HEADER), None)
        session = None if self.view is None else self.view.get_by_header(raw)
        flow.metadata[STATE_KEY] = session
        if not ctx.options.sessionstore_forward_header:
            flow.request.headers.pop(SESSION_HEADER, None)
        if session is not None and ctx.options.sessionstore_delay:
            await apply_delay(session)


_HEADER = SESSION_HEADER.encode()

#: Each option, the environment variable of its default, the default without it, and its meaning.
_SETTINGS = (
    ("sessionstore_url", "SESSIONSTORE_REDIS_URL", "redis://localhost:6379/0", "Redis that holds the sessions."),
    ("sessionstore_project", "SESSIONSTORE_PROJECT", "", "Project of the sessions."),
    ("sessionstore_environment", "SESSIONSTORE_ENVIRONMENT", "", "Environment of the sessions."),
    ("sessionstore_prefix", "SESSIONSTORE_PREFIX", DEFAULT_PREFIX, "In front of every key in Redis; the gateway's."),
    (
        "sessionstore_ttl",
        "SESSIONSTORE_TTL",
        show_seconds(DEFAULT_TTL_S),
        "How long a session lives after it was last seen; the gateway's.",
    ),
    (
        "sessionstore_lease",
        "SESSIONSTORE_LEASE",
        show_seconds(DEFAULT_LEASE_S),
        "How long a view's lease lasts; the gateway's.",
    ),
)


def _seconds(name: str, text: str) -> float:
    try:
        return parse_seconds(text)
    except InvalidInputError as exc:
        raise InvalidInputError(f"sessionstore_{name} {exc}") from None


def _refusal(sentence: str) -> exceptions.OptionsError:
    return exceptions.OptionsError(f"sessionstore: {sentence}")
