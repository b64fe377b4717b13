"""What the extras bring."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(package: str, extra: str = "") -> Iterator[Requirement]:
    """What a package needs, as its installed metadata say."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def everything(package: str, extra: str = "") -> set[str]:
    """The names of all packages that come with one."""
    found: set[str] = set()
    wanted = [(package, extra)]
    while wanted:
        for requirement in required(*wanted.pop()):
            name = str(canonicalize_name(requirement.name))
            if name not in found:
                found.add(name)
                wanted += [(name, chosen) for chosen in ("", *requirement.extras)]
    return found


def direct(extra: str) -> set[str]:
    """What an extra adds by itself."""
    return _names(required("sessionstore", extra)) - _names(required("sessionstore"))


def _names(requirements: Iterator[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def test_the_client_brings_httpx_and_nothing_of_the_gateway() -> None:
    assert direct("client") == {"httpx"}
    # h11 speaks HTTP for httpx too.
    assert direct("gateway") - {"h11", "sessionstore"} >= {"prometheus-client", "starlette", "uvicorn"}
    assert everything("sessionstore", "client") & (direct("gateway") | direct("embedded")) == {"h11"}


def test_a_gateway_brings_no_embedded_store() -> None:
    assert direct("embedded") == {"fakeredis"}
    for extra in ("gateway", "cli"):
        assert everything("sessionstore", extra) & {"fakeredis", "lupa"} == set()


def test_pytest_finds_the_plugin() -> None:
    [plugin] = entry_points(group="pytest11", name="mock_session")
    assert plugin.value == "sessionstore.client.pytest_plugin"


def run(program: str) -> str:
    """What a Python program writes to standard error."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    return done.stderr


def test_without_httpx_the_import_says_what_to_install() -> None:
    error = run("import sys; sys.modules['httpx'] = None; from sessionstore.client import SessionClient")
    assert "The HTTP client needs httpx: pip install 'sessionstore[client]'." in error
    error = run("import sys; sys.modules['msgspec'] = None; from sessionstore.client import SessionClient")
    assert "The HTTP client needs httpx" not in error
    assert "msgspec" in error


def test_neither_the_client_nor_the_plugin_needs_redis() -> None:
    without = "import sys; sys.modules.update(redis=None, fakeredis=None, starlette=None)"
    assert run(f"{without}; from sessionstore.client import SessionClient, AsyncSessionClient") == ""
    assert run(f"{without}; import sessionstore.client.pytest_plugin, sessionstore.client.failure_report") == ""


def test_the_names_are_there_before_httpx_is_imported() -> None:
    program = "import sys, sessionstore.client as c; assert 'SessionClient' in dir(c) and 'httpx' not in sys.modules"
    assert run(program) == ""
    assert "module 'sessionstore.client' has no attribute 'X'" in run("import sessionstore.client as c; c.X")
