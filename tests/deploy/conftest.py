"""A Redis with the users of deploy/users.acl."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..conftest import require_redis_server
from ..support.checkout import ROOT
from ..support.redis_server import RedisServer

ACL = ROOT / "deploy" / "users.acl"
PASSWORDS = {"gateway": "gateway-password", "proxy-checkout": "proxy-password"}


class Guarded:
    """A Redis with the file's users, and a third one who may do everything."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.raw: Any = server.client(username="admin", password="admin-password")

    def url(self, user: str) -> str:
        return f"redis://{user}:{PASSWORDS[user]}@127.0.0.1:{self.server.port}/0"

    def client(self, user: str) -> Any:
        return self.server.client(username=user, password=PASSWORDS[user])

    def denied(self) -> list[str]:
        """What was denied to anybody since the last look, without the library's name, which redis-py tries to set."""
        entries = self.raw.execute_command("ACL", "LOG")
        self.raw.execute_command("ACL", "LOG", "RESET")
        told = [(entry["username"], entry["object"]) for entry in map(_as_texts, entries)]
        return [f"{user}: {what}" for user, what in told if what != "client|setinfo"]


def _as_texts(entry: Any) -> dict[str, str]:
    pairs = entry.items() if isinstance(entry, dict) else zip(entry[::2], entry[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    require_redis_server()
    file = tmp_path_factory.mktemp("acl") / "users.acl"
    file.write_text(ACL.read_text(encoding="utf-8") + "user admin on >admin-password ~* &* +@all\n", encoding="utf-8")
    with RedisServer(aclfile=str(file)) as server:
        guarded = Guarded(server)
        yield guarded
        guarded.raw.close()


@pytest.fixture
def guarded(lasting: Guarded) -> Iterator[Guarded]:
    lasting.raw.flushall()
    lasting.denied()
    yield lasting
    lasting.raw.flushall()
