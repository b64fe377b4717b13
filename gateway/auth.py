"""Who may call: API keys.

The gateway holds the SHA-256 of a key, never the key, and compares in constant time. No key is ever logged: logs name
it by its public id, the first digits of its hash.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256

from msgspec import Struct

from .errors import UnauthorizedError

__all__ = ["Authenticator", "Principal"]

#: The scheme in any case, and a key by its form (`sessionstore.apikeys`): what has another is not worth a hash.
_AUTHORIZATION = re.compile(rb"(?i:bearer|token) +(fmk_[A-Za-z0-9_-]{43})\Z")
#: Digits of a hash that are the key's public id.
_ID_LENGTH = 12


class Principal(Struct, frozen=True, gc=False):
    """Whose key it is.

    Attributes
    ----------
    key_id : str
        Names the key in logs.
    project : str or None
        The one project that the key opens; None: every project.
    """

    key_id: str
    project: str | None = None


class Authenticator:
    """Knows one key, which opens every project."""

    def __init__(self, secret: str) -> None:
        self._digest = sha256(secret.encode()).digest()
        self._principal = Principal(self._digest.hex()[:_ID_LENGTH])

    def authenticate(self, authorization: bytes | None) -> Principal:
        """Find out whose key an ``Authorization`` header holds.

        Raises
        ------
        UnauthorizedError
            The same for no key, a malformed and an unknown one.
        """
        match = _AUTHORIZATION.match(authorization or b"")
        if match is None or not hmac.compare_digest(sha256(match[1]).digest(), self._digest):
            raise UnauthorizedError
        return self._principal
