"""Mock state of test sessions in Redis: set by CI, looked up by proxies on every request.

`SessionStore` is for threads, `AsyncSessionStore` for asyncio; they have the same methods.
"""

from __future__ import annotations

from msgspec import UNSET

from .aio.api_keys import AsyncApiKeys
from .aio.environment import AsyncEnvironment
from .aio.project import AsyncProject
from .aio.store import AsyncSessionStore
from .aio.view import AsyncView
from .api_keys.model import ApiKey, KeySnapshot, NewApiKey
from .api_keys.ring import KeyRing, Refusal
from .catalog.document import CatalogDocument, parse_catalog_document
from .catalog.model import Catalog, CatalogDiff, Mock, Scenario, ScenarioPage, diff_catalogs
from .embedded import EmbeddedServer
from .errors import (
    ApiKeyNotFoundError,
    CorruptDataError,
    EnvironmentNotFoundError,
    IncompatibleLayoutError,
    InvalidCatalogError,
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
    TooManyApiKeysError,
)
from .options import Observer, StoreOptions
from .protocol.calls import IfMatch
from .protocol.catalog_operations import CatalogReport, EnvironmentReport
from .replica.view import BaseView, ChangeCallback, OnStale, ViewStats
from .session import (
    Deletion,
    Effect,
    LiveView,
    Session,
    SessionPage,
    SessionPatch,
    SessionProperties,
    normalize_session_key,
    session_key_from_header,
)
from .sync.api_keys import ApiKeys
from .sync.environment import Environment
from .sync.project import Project
from .sync.store import SessionStore
from .sync.view import View
from .version import __version__

__all__ = [
    "__version__",
    # stores
    "ApiKeys",
    "AsyncApiKeys",
    "AsyncEnvironment",
    "AsyncProject",
    "AsyncSessionStore",
    "EmbeddedServer",
    "Environment",
    "Project",
    "SessionStore",
    # values
    "Deletion",
    "Effect",
    "LiveView",
    "Session",
    "SessionPage",
    "SessionPatch",
    "SessionProperties",
    # views
    "AsyncView",
    "BaseView",
    "View",
    "ViewStats",
    # API keys
    "ApiKey",
    "KeyRing",
    "KeySnapshot",
    "NewApiKey",
    "Refusal",
    # catalogs
    "Catalog",
    "CatalogDiff",
    "CatalogDocument",
    "CatalogReport",
    "EnvironmentReport",
    "Mock",
    "Scenario",
    "ScenarioPage",
    "diff_catalogs",
    "parse_catalog_document",
    # session keys
    "normalize_session_key",
    "session_key_from_header",
    # for annotations, and for what passes arguments on
    "ChangeCallback",
    "IfMatch",
    "Observer",
    "OnStale",
    "StoreOptions",
    "UNSET",
    # errors
    "ApiKeyNotFoundError",
    "CorruptDataError",
    "EnvironmentNotFoundError",
    "IncompatibleLayoutError",
    "InvalidCatalogError",
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
    "TooManyApiKeysError",
]
