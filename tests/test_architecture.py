"""What holds the source together: layers, exports, and two drivers with one face."""

from __future__ import annotations

import ast
import inspect
import re
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

PACKAGE = Path(sessionstore.__file__).parent

#: Modules that may know redis, threads, clocks and sockets: what both drivers share of them. Everything else in the
#: package's top folder is the core: pure functions and values.
AT_THE_EDGE = {"cli", "clock", "connection", "embedded", "view"}
IMPURE = {"redis", "fakeredis", "socket", "threading", "asyncio", "time", "selectors", "subprocess"}

CORE = sorted(path for path in PACKAGE.glob("*.py") if path.stem not in AT_THE_EDGE | {"__init__"})


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, other than for type checking; relative ones begin with a dot."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                found |= {"." * node.level + name for name in ([module] if module else [a.name for a in node.names])}
            else:
                found.add(module.split(".")[0])
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_knows_no_io_no_clock_and_no_thread(path: Path) -> None:
    found = imports(path)

    assert found & IMPURE == set()
    assert {name for name in found if name.startswith((".sync", ".aio", ".connection", ".embedded"))} == set()


def test_there_is_a_core() -> None:
    assert {"codec", "commands", "errors", "keys", "messages", "operations", "session"} <= {path.stem for path in CORE}


#: Layers, lowest first: a module imports none from a layer above its own.
LAYERS = [["errors"], ["session", "catalog"], ["keys"], ["messages"], ["codec"], ["commands"], ["operations"]]


def test_layers_only_look_down() -> None:
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    for name, level in height.items():
        for imported in imports(PACKAGE / f"{name}.py"):
            above = height.get(imported.removeprefix("."), -1) if imported.startswith(".") else -1
            assert above <= level, f"{name} imports {imported}"


def test_the_drivers_do_not_know_each_other() -> None:
    for folder, other in (("sync", "aio"), ("aio", "sync")):
        for path in (PACKAGE / folder).glob("*.py"):
            assert not [name for name in imports(path) if name.startswith(f"..{other}")], path


def test_the_library_does_not_know_the_gateway() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.stem != "cli" and "cli" not in path.parts:
            assert "gateway" not in imports(path), path


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("sync", "aio"),
    [
        (SessionStore, AsyncSessionStore),
        (Environment, AsyncEnvironment),
        (Project, AsyncProject),
        (ApiKeys, AsyncApiKeys),
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
    "ApiKey",
    "ApiKeyNotFoundError",
    "ApiKeys",
    "AsyncApiKeys",
    "AsyncEnvironment",
    "AsyncProject",
    "AsyncSessionStore",
    "AsyncView",
    "Catalog",
    "CatalogDiff",
    "CatalogDocument",
    "CatalogReport",
    "ChangeCallback",
    "CorruptDataError",
    "Deletion",
    "Effect",
    "EmbeddedServer",
    "Environment",
    "EnvironmentNotFoundError",
    "EnvironmentReport",
    "IfMatch",
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
    "LiveView",
    "Mock",
    "NewApiKey",
    "NotEffectiveError",
    "NotFoundError",
    "Observer",
    "OnStale",
    "OutcomeUnknownError",
    "OverrideNotFoundError",
    "PreconditionFailedError",
    "Project",
    "Refusal",
    "Scenario",
    "ScenarioPage",
    "Session",
    "SessionNotFoundError",
    "SessionPage",
    "SessionStore",
    "SessionStoreError",
    "StaleView",
    "StoreClosedError",
    "StoreOptions",
    "StoreUnavailableError",
    "SyncView",
    "TooManyApiKeysError",
    "UNSET",
    "View",
    "ViewStats",
    "diff_catalogs",
    "normalize_session_key",
    "parse_catalog_document",
    "session_key_from_header",
}


def test_exports() -> None:
    assert set(sessionstore.__all__) >= PROMISED
    assert len(set(sessionstore.__all__)) == len(sessionstore.__all__)
    for name in sessionstore.__all__:
        value = getattr(sessionstore, name)
        assert not isinstance(value, type) or value.__doc__, name
    star: dict[str, Any] = {}
    exec("from sessionstore import *", star)
    assert set(star) - {"__builtins__"} == set(sessionstore.__all__)


def test_every_error_is_exported_and_has_the_one_root() -> None:
    from sessionstore import errors

    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, sessionstore.SessionStoreError), name
            assert name in errors.__all__, name
            assert name in sessionstore.__all__, name
            assert kind.code, name
