"""The public names, and two drivers with the same methods."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sessionstore
from sessionstore import (
    ApiKeys,
    AsyncApiKeys,
    AsyncEnvironment,
    AsyncProject,
    AsyncSessionStore,
    Environment,
    Project,
    SessionStore,
)
from sessionstore.client import AsyncMockSession, AsyncSessionClient, MockSession, SessionClient

PACKAGE = Path(sessionstore.__file__).parent


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("sync", "aio"),
    [
        (SessionStore, AsyncSessionStore),
        (Environment, AsyncEnvironment),
        (Project, AsyncProject),
        (ApiKeys, AsyncApiKeys),
        (MockSession, AsyncMockSession),
        (SessionClient, AsyncSessionClient),
    ],
)
def test_both_drivers_have_the_same_public_face(sync: type, aio: type) -> None:
    ours = public(sync)
    theirs = {_RENAMED.get(name, name): member for name, member in public(aio).items()}
    assert set(ours) == set(theirs)
    for name, member in ours.items():
        other = theirs[name]
        assert isinstance(member, property) == isinstance(other, property), name
        pair: tuple[Any, Any] = (member.fget, other.fget) if isinstance(member, property) else (member, other)
        mine, its = (plain(inspect.signature(getattr(function, "__func__", function))) for function in pair)
        assert mine == its, name


_RENAMED = {"aclose": "close"}

#: How the drivers' own names differ.
_DRIVER_NAME = re.compile(r"\b(Async|Sync)(?=[A-Z])|\bredis\.(asyncio\.)?")


def plain(signature: inspect.Signature) -> tuple[list[tuple[str, Any, Any, str]], str]:
    """A signature without the driver's own names."""
    parameters = [
        (parameter.name, parameter.kind, parameter.default, _DRIVER_NAME.sub("", str(parameter.annotation)))
        for parameter in signature.parameters.values()
    ]
    return parameters, _DRIVER_NAME.sub("", str(signature.return_annotation))


#: What other code may rely on. A name that leaves this list breaks somebody's proxy.
PROMISED = {
    "AccessDeniedError",
    "ApiKey",
    "ApiKeyNotFoundError",
    "ApiKeys",
    "AsyncApiKeys",
    "AsyncEnvironment",
    "AsyncProject",
    "AsyncSessionStore",
    "AsyncView",
    "BulkResult",
    "Catalog",
    "CatalogDiff",
    "CatalogDocument",
    "CatalogReport",
    "ChangeCallback",
    "CorruptDataError",
    "CorruptSessionError",
    "Deletion",
    "Effect",
    "EmbeddedServer",
    "Environment",
    "EnvironmentNotFoundError",
    "EnvironmentReport",
    "IfMatch",
    "IncompatibleLayoutError",
    "InvalidCatalogError",
    "InvalidFieldError",
    "InvalidInputError",
    "InvalidOverrideError",
    "InvalidQueryError",
    "InvalidScenarioError",
    "InvalidSessionKeyError",
    "InvalidSlugError",
    "KeyRing",
    "KeySnapshot",
    "LiveCounts",
    "LiveView",
    "LiveViews",
    "Mock",
    "NewApiKey",
    "NotDurableError",
    "NotEffectiveError",
    "NotFoundError",
    "Observer",
    "OnStale",
    "OutcomeUnknownError",
    "OverrideNotFoundError",
    "PreconditionFailedError",
    "QuotaExceededError",
    "RateLimitedError",
    "Project",
    "Refusal",
    "RequestCount",
    "Scenario",
    "ScenarioPage",
    "Session",
    "SessionDetails",
    "SessionNotFoundError",
    "SessionPage",
    "SessionPatch",
    "SessionProperties",
    "SessionStore",
    "SessionStoreError",
    "StaleView",
    "StoreClosedError",
    "StoreOptions",
    "StoreUnavailableError",
    "TooFewViewsError",
    "TooManyApiKeysError",
    "UNSET",
    "BaseView",
    "View",
    "ViewStats",
    "diff_catalogs",
    "normalize_session_key",
    "parse_catalog_document",
    "session_key_from_header",
}


def test_exports() -> None:
    assert set(sessionstore.__all__) == PROMISED | {"__version__"}
    for name in PROMISED:
        value = getattr(sessionstore, name)
        assert not isinstance(value, type) or value.__doc__, name
    star: dict[str, Any] = {}
    exec("from sessionstore import *", star)
    assert star.keys() >= PROMISED


def test_type_checkers_find_each_name_where_the_program_does() -> None:
    tree = ast.parse(Path(sessionstore.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    declared = {alias.asname: "." * node.level + str(node.module) for node in imports for alias in node.names}
    assert declared == sessionstore._MODULES


def test_importing_the_library_imports_what_a_used_name_needs() -> None:
    program = """if True:
        import sys
        import sessionstore
        def loaded():
            return {"asyncio", "fakeredis", "httpx", "msgspec", "redis"} & set(sys.modules)
        assert not loaded(), loaded()
        assert {"Session", "SessionStore"} <= set(dir(sessionstore))
        sessionstore.Session
        assert loaded() == {"msgspec"}, loaded()
        sessionstore.SessionStore
        assert "redis" in loaded()
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'sessionstore' has no attribute 'SesionStore'"):
        getattr(sessionstore, "SesionStore")  # noqa: B009  mypy knows that there is none


def test_every_error_is_exported_and_has_the_one_root() -> None:
    from sessionstore import errors

    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, sessionstore.SessionStoreError), name
            assert name in PROMISED, name
            assert kind.code, name
