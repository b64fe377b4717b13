"""Pages of a list: the number of entries, and the cursor, which marks where the next page begins."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec

from .errors import InvalidQueryError

#: The most entries of one page.
MAX_PAGE = 100

T = TypeVar("T")


def validate_limit(limit: int) -> int:
    """Check the number of entries of a page: 1 to 100.

    Raises
    ------
    InvalidQueryError
    """
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise InvalidQueryError(f"limit must be a whole number from 1 to {MAX_PAGE}.")
    return limit


def encode_cursor(place: object) -> str:
    """Encode the place of a page's last entry as text that is safe in a URL."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(text: str, kind: type[T], name: str) -> T:
    """Decode a cursor of `encode_cursor`; `name` is the parameter's name in the message.

    Raises
    ------
    InvalidQueryError
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=kind)
        msgspec.json.encode(place)  # reject a lone surrogate here, before it is sent to Redis
        return place
    except (binascii.Error, ValueError, msgspec.DecodeError, AttributeError, TypeError) as exc:
        raise InvalidQueryError(f"{name} is not what a list returned; begin without it.") from exc
