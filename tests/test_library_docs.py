"""Every Python example of docs/library.md runs, in order, on a real Redis."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import CodeType
from typing import Any

import sessionstore

from .redis_server import RedisServer

PAGE = Path(__file__).parents[1] / "docs" / "library.md"

_EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[CodeType]:
    """The page's examples, each compiled so that an error names its line there."""
    text = PAGE.read_text(encoding="utf-8")
    return [
        compile(
            "\n" * text.count("\n", 0, match.start(1)) + match[1],
            str(PAGE),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )
        for match in _EXAMPLE.finditer(text)
    ]


async def test_the_examples_run(shared_redis: RedisServer, prefix: str, monkeypatch: Any) -> None:
    for kind in (sessionstore.SessionStore, sessionstore.AsyncSessionStore):
        from_url: Any = kind.from_url

        def from_here(url: str, *, from_url: Any = from_url, **options: Any) -> Any:
            assert url == "redis://localhost:6379/0"
            return from_url(shared_redis.url, prefix=prefix, **options)

        monkeypatch.setattr(kind, "from_url", from_here)

    namespace: dict[str, Any] = {}
    for code in examples():
        result = eval(code, namespace)
        if inspect.iscoroutine(result):
            await result


def test_there_are_examples() -> None:
    assert len(examples()) > 10
