"""An HTTP client of the gateway, and a pytest plugin on it. Needs ``sessionstore[client]``, and no Redis.

`SessionClient` is for threads, `AsyncSessionClient` for asyncio; they have the same methods::

    with SessionClient("http://localhost:8080", project="checkout", environment="staging") as client:
        with client.session("ci-42", scenario="scn_paymentDeclined") as session:
            httpx.get("http://localhost:8081/pay", headers=session.headers)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .aio import AsyncMockSession as AsyncMockSession, AsyncSessionClient as AsyncSessionClient
    from .sync import MockSession as MockSession, SessionClient as SessionClient

#: The module of each name, imported when the name is first used. Every pytest imports the plugin, and only a test that
#: uses it should pay for httpx.
_MODULES = {
    "AsyncMockSession": ".aio",
    "AsyncSessionClient": ".aio",
    "MockSession": ".sync",
    "SessionClient": ".sync",
}

__all__ = list(_MODULES)


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(_MODULES[name], __name__), name)
        except ModuleNotFoundError as exc:
            if exc.name != "httpx":
                raise
            raise ModuleNotFoundError(
                "The HTTP client needs httpx: pip install 'sessionstore[client]'.", name="httpx"
            ) from exc
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
