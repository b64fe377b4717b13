"""The gateway's address, and the API key: from arguments, else from environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..api_keys.model import is_secret
from ..errors import InvalidInputError
from ..options import check_seconds
from ..session import validate_slug
from ..variables import read_variable
from ..version import __version__
from .calls import BASE_PATH

#: Seconds that the gateway may take to connect and to answer.
DEFAULT_TIMEOUT_S = 10.0
#: Seconds within which a call is sent again.
DEFAULT_RETRY_FOR_S = 30.0

#: The least and the most of each, in seconds.
TIMEOUT_RANGE_S = (0.05, 3600.0)
RETRY_FOR_RANGE_S = (0.0, 3600.0)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of one client, checked; see `SessionClient`."""

    #: without a slash at the end
    url: str
    api_key: str = field(repr=False)
    project: str | None
    environment: str | None
    timeout_s: float
    retry_for_s: float

    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {
            "authorization": f"Bearer {self.api_key}",
            "user-agent": f"sessionstore/{__version__}",
            "accept": "application/json",
        }


def read_settings(
    url: str | None,
    api_key: str | None,
    project: str | None,
    environment: str | None,
    timeout_s: float,
    retry_for_s: float,
    environ: Mapping[str, str] = os.environ,
) -> ClientSettings:
    """Take each setting from its argument, else from its variable; an empty one counts as not given.

    Raises
    ------
    InvalidInputError
        One is missing or invalid. The message quotes no value, because a URL or key may be a secret.
    """
    url = url or read_variable(environ, "URL")
    if not url:
        raise InvalidInputError("No gateway is named; give url or set SESSIONSTORE_URL, as in http://localhost:8080.")
    api_key = (api_key or read_variable(environ, "API_KEY") or "").strip()
    if not api_key:
        raise InvalidInputError(
            "No API key is given; give api_key or set SESSIONSTORE_API_KEY. `sessionstore keys create` makes one."
        )
    if not is_secret(api_key):
        raise InvalidInputError("The API key is malformed: it must be fmk_ and 43 characters of base64url.")
    project = project or read_variable(environ, "PROJECT")
    environment = environment or read_variable(environ, "ENVIRONMENT")
    check_seconds("timeout_s", timeout_s, *TIMEOUT_RANGE_S)
    check_seconds("retry_for_s", retry_for_s, *RETRY_FOR_RANGE_S)
    return ClientSettings(
        _checked_url(url),
        api_key,
        None if project is None else validate_slug(project, "project"),
        None if environment is None else validate_slug(environment, "environment"),
        timeout_s,
        retry_for_s,
    )


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or parts.username is not None or parts.password is not None:
        raise InvalidInputError(
            "The gateway's URL is invalid; use http or https, a host and a port, as in http://localhost:8080."
        )
    return url.rstrip("/").removesuffix(BASE_PATH)
