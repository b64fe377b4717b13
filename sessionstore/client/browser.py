"""What the pytest plugin adds to pytest-playwright: browsers send the session header, to the named origins only.

The header is added by route. `extra_http_headers` would send it to every third party, and make CORS preflights. A
redirected request keeps it, on any origin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Request, Route

    from .sync import MockSession

#: The URLs whose requests get the header.
PROXIED: pytest.StashKey[re.Pattern[str]] = pytest.StashKey()

_DEFAULT_PORTS = {"http": 80, "https": 443}


@pytest.fixture
def new_context(
    new_context: Callable[..., BrowserContext], mock_session: MockSession, pytestconfig: pytest.Config
) -> Callable[..., BrowserContext]:
    """Make a browser context that sends the test's session to the named origins."""
    proxied = pytestconfig.stash[PROXIED]

    def add_header(route: Route, request: Request) -> None:
        route.fallback(headers={**request.headers, **mock_session.headers})

    def make(**options: Any) -> BrowserContext:
        context = new_context(**options)
        context.route(proxied, add_header)
        return context

    return make


def match_origins(text: str) -> re.Pattern[str]:
    """Make a pattern of the URLs of some origins, which white space separates.

    Raises
    ------
    pytest.UsageError
    """
    return re.compile(f"^(?:{'|'.join(re.escape(_origin(word)) for word in text.split())})/")


def _origin(text: str) -> str:
    """Write an origin as a browser does: in lower case, without the default port."""
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        host = None
    if host is None or url.scheme not in _DEFAULT_PORTS or url.path not in ("", "/") or url.query or url.username:
        raise pytest.UsageError(f"--mock-session-origins takes origins such as https://staging.example, not {text!r}.")
    host = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS[url.scheme]) else f":{port}")
