"""Mock state of test sessions in Redis: set by CI, looked up by proxies on every request.

`SessionStore` is for threads, `AsyncSessionStore` for asyncio; they have the same methods.
"""

from __future__ import annotations

from .aio.store import AsyncEnvironment, AsyncSessionStore
from .embedded import EmbeddedServer
from .errors import (
    CorruptDataError,
    EnvironmentNotFoundError,
    InvalidFieldError,
    InvalidInputError,
    InvalidOverrideError,
    InvalidQueryError,
    InvalidScenarioError,
    InvalidSessionKeyError,
    InvalidSlugError,
    NotEffectiveError,
    NotFoundError,
    OutcomeUnknownError,
    OverrideNotFoundError,
    PreconditionFailedError,
    SessionNotFoundError,
    SessionStoreError,
    StaleView,
    StoreClosedError,
    StoreUnavailableError,
)
from .session import (
    Deletion,
    Effect,
    Session,
    SessionPage,
    normalize_session_key,
    session_key_from_header,
)
from .sync.store import Environment, SessionStore

__version__ = "0.1.0"

__all__ = [
    # stores
    "AsyncEnvironment",
    "AsyncSessionStore",
    "EmbeddedServer",
    "Environment",
    "SessionStore",
    # values
    "Deletion",
    "Effect",
    "Session",
    "SessionPage",
    # session keys
    "normalize_session_key",
    "session_key_from_header",
    # errors
    "CorruptDataError",
    "EnvironmentNotFoundError",
    "InvalidFieldError",
    "InvalidInputError",
    "InvalidOverrideError",
    "InvalidQueryError",
    "InvalidScenarioError",
    "InvalidSessionKeyError",
    "InvalidSlugError",
    "NotEffectiveError",
    "NotFoundError",
    "OutcomeUnknownError",
    "OverrideNotFoundError",
    "PreconditionFailedError",
    "SessionNotFoundError",
    "SessionStoreError",
    "StaleView",
    "StoreClosedError",
    "StoreUnavailableError",
]
