"""A pytest plugin for the author of a proxy: each test has a store of its own.

In the ``conftest.py`` of the root folder::

    pytest_plugins = ["sessionstore.contrib.pytest_plugin"]

The store is in the memory of pytest's process, and needs ``sessionstore[embedded]``. With ``--session-store-url``, or
``session_store_url`` in the ini file, it is in that Redis, under a prefix of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from ..embedded import EmbeddedServer
from ..protocol.keyspace import DEFAULT_PREFIX
from ..sync.store import SessionStore

_HELP = "the Redis for session_store, such as redis://localhost:6379/0; by default, it is in memory"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option, and the same in the ini file."""
    parser.getgroup("session_store", "proxies under test (sessionstore)").addoption(
        "--session-store-url", metavar="URL", help=_HELP
    )
    parser.addini("session_store_url", _HELP)


@pytest.fixture
def session_store_env(pytestconfig: pytest.Config) -> Iterator[dict[str, str]]:
    """Where `session_store` is, as variables for the process of a proxy: SESSIONSTORE_REDIS_URL, SESSIONSTORE_PREFIX.

    In memory the prefix is the default one. In Redis it is random, and its keys are deleted after the test.
    """
    url = pytestconfig.getoption("--session-store-url") or pytestconfig.getini("session_store_url")
    if not url:
        with EmbeddedServer() as server:
            yield {"SESSIONSTORE_REDIS_URL": server.listen(), "SESSIONSTORE_PREFIX": DEFAULT_PREFIX}
        return
    prefix = f"test-{secrets.token_hex(8)}"
    with SessionStore.from_url(url, prefix=prefix) as store:
        store.ping()
    yield {"SESSIONSTORE_REDIS_URL": url, "SESSIONSTORE_PREFIX": prefix}
    _delete_keys(url, prefix)


@pytest.fixture
def session_store(session_store_env: dict[str, str]) -> Iterator[SessionStore]:
    """An empty store for this test. A proxy finds it by `session_store_env`, from any process of this machine."""
    url, prefix = session_store_env["SESSIONSTORE_REDIS_URL"], session_store_env["SESSIONSTORE_PREFIX"]
    with SessionStore.from_url(url, prefix=prefix) as store:
        yield store


def _delete_keys(url: str, prefix: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=f"{prefix}:*", count=500):
            client.unlink(key)
