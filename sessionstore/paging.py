"""Pages of a list: how many entries one has, and the opaque text that says where the next one begins."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec

from .errors import InvalidQueryError

#: Entries of one page, at most.
MAX_PAGE = 100

T = TypeVar("T")


def validate_limit(limit: int) -> int:
    """Check how many entries a page is to have: 1 to 100.

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
    """Decode what `encode_cursor` returned; `name` is the parameter's, for the message.

    Raises
    ------
    InvalidQueryError
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=kind)
        msgspec.json.encode(place)  # a lone surrogate would only fail on its way to Redis
        return place
    except (binascii.Error, ValueError, msgspec.DecodeError, AttributeError, TypeError) as exc:
        raise InvalidQueryError(f"{name} is not what a list returned; begin without it.") from exc
