"""Mock state of test sessions in Redis: set by CI, looked up by proxies on every request.

`SessionStore` is for threads, `AsyncSessionStore` for asyncio; they have the same methods. Each name that is imported
here, as itself, is public.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__ as __version__

if TYPE_CHECKING:
    from msgspec import UNSET as UNSET

    from .aio.api_keys import AsyncApiKeys as AsyncApiKeys
    from .aio.environment import AsyncEnvironment as AsyncEnvironment
    from .aio.project import AsyncProject as AsyncProject
    from .aio.store import AsyncSessionStore as AsyncSessionStore
    from .aio.view import AsyncView as AsyncView
    from .api_keys.model import (
        ApiKey as ApiKey,
        KeySnapshot as KeySnapshot,
        NewApiKey as NewApiKey,
        RequestCount as RequestCount,
    )
    from .api_keys.ring import KeyRing as KeyRing, Refusal as Refusal
    from .catalog.document import CatalogDocument as CatalogDocument, parse_catalog_document as parse_catalog_document
    from .catalog.model import (
        Catalog as Catalog,
        CatalogDiff as CatalogDiff,
        Mock as Mock,
        Scenario as Scenario,
        ScenarioPage as ScenarioPage,
        diff_catalogs as diff_catalogs,
    )
    from .embedded import EmbeddedServer as EmbeddedServer
    from .errors import (
        AccessDeniedError as AccessDeniedError,
        ApiKeyNotFoundError as ApiKeyNotFoundError,
        CorruptDataError as CorruptDataError,
        CorruptSessionError as CorruptSessionError,
        EnvironmentNotFoundError as EnvironmentNotFoundError,
        IncompatibleLayoutError as IncompatibleLayoutError,
        InvalidCatalogError as InvalidCatalogError,
        InvalidFieldError as InvalidFieldError,
        InvalidInputError as InvalidInputError,
        InvalidOverrideError as InvalidOverrideError,
        InvalidQueryError as InvalidQueryError,
        InvalidScenarioError as InvalidScenarioError,
        InvalidSessionKeyError as InvalidSessionKeyError,
        InvalidSlugError as InvalidSlugError,
        NotDurableError as NotDurableError,
        NotEffectiveError as NotEffectiveError,
        NotFoundError as NotFoundError,
        OutcomeUnknownError as OutcomeUnknownError,
        OverrideNotFoundError as OverrideNotFoundError,
        PreconditionFailedError as PreconditionFailedError,
        QuotaExceededError as QuotaExceededError,
        RateLimitedError as RateLimitedError,
        SessionNotFoundError as SessionNotFoundError,
        SessionStoreError as SessionStoreError,
        StaleView as StaleView,
        StoreClosedError as StoreClosedError,
        StoreUnavailableError as StoreUnavailableError,
        TooFewViewsError as TooFewViewsError,
        TooManyApiKeysError as TooManyApiKeysError,
    )
    from .options import Observer as Observer, StoreOptions as StoreOptions
    from .protocol.calls import IfMatch as IfMatch
    from .protocol.catalog_operations import CatalogReport as CatalogReport, EnvironmentReport as EnvironmentReport
    from .replica.view import (
        BaseView as BaseView,
        ChangeCallback as ChangeCallback,
        OnStale as OnStale,
        ViewStats as ViewStats,
    )
    from .session import (
        BulkResult as BulkResult,
        Deletion as Deletion,
        Effect as Effect,
        LiveCounts as LiveCounts,
        LiveView as LiveView,
        LiveViews as LiveViews,
        Session as Session,
        SessionDetails as SessionDetails,
        SessionPage as SessionPage,
        SessionPatch as SessionPatch,
        SessionProperties as SessionProperties,
        normalize_session_key as normalize_session_key,
        session_key_from_header as session_key_from_header,
    )
    from .sync.api_keys import ApiKeys as ApiKeys
    from .sync.environment import Environment as Environment
    from .sync.project import Project as Project
    from .sync.store import SessionStore as SessionStore
    from .sync.view import View as View

#: Where `__getattr__` finds the same names. It imports a module when its first name is used: most need msgspec or
#: redis-py, and redis-py alone takes longer to import than the rest.
_NAMES = {
    "msgspec": ("UNSET",),
    ".aio.api_keys": ("AsyncApiKeys",),
    ".aio.environment": ("AsyncEnvironment",),
    ".aio.project": ("AsyncProject",),
    ".aio.store": ("AsyncSessionStore",),
    ".aio.view": ("AsyncView",),
    ".api_keys.model": ("ApiKey", "KeySnapshot", "NewApiKey", "RequestCount"),
    ".api_keys.ring": ("KeyRing", "Refusal"),
    ".catalog.document": ("CatalogDocument", "parse_catalog_document"),
    ".catalog.model": ("Catalog", "CatalogDiff", "Mock", "Scenario", "ScenarioPage", "diff_catalogs"),
    ".embedded": ("EmbeddedServer",),
    ".errors": (
        "AccessDeniedError",
        "ApiKeyNotFoundError",
        "CorruptDataError",
        "CorruptSessionError",
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
        "NotDurableError",
        "NotEffectiveError",
        "NotFoundError",
        "OutcomeUnknownError",
        "OverrideNotFoundError",
        "PreconditionFailedError",
        "QuotaExceededError",
        "RateLimitedError",
        "SessionNotFoundError",
        "SessionStoreError",
        "StaleView",
        "StoreClosedError",
        "StoreUnavailableError",
        "TooFewViewsError",
        "TooManyApiKeysError",
    ),
    ".options": ("Observer", "StoreOptions"),
    ".protocol.calls": ("IfMatch",),
    ".protocol.catalog_operations": ("CatalogReport", "EnvironmentReport"),
    ".replica.view": ("BaseView", "ChangeCallback", "OnStale", "ViewStats"),
    ".session": (
        "BulkResult",
        "Deletion",
        "Effect",
        "LiveCounts",
        "LiveView",
        "LiveViews",
        "Session",
        "SessionDetails",
        "SessionPage",
        "SessionPatch",
        "SessionProperties",
        "normalize_session_key",
        "session_key_from_header",
    ),
    ".sync.api_keys": ("ApiKeys",),
    ".sync.environment": ("Environment",),
    ".sync.project": ("Project",),
    ".sync.store": ("SessionStore",),
    ".sync.view": ("View",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_MODULES]


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
