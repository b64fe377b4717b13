"""Every Python example of the library's pages runs, in order, on a real Redis."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import sessionstore

from ..support.redis_server import RedisServer

DOCS = Path(__file__).parents[2] / "docs"
PAGES = pytest.mark.parametrize(("page", "least"), [("library.md", 8), ("proxies.md", 3), ("catalog.md", 1)])

_EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: str) -> list[CodeType]:
    """The page's examples, compiled so that an error names its line on the page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        compile(
            "\n" * text.count("\n", 0, match.start(1)) + match[1],
            str(DOCS / page),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )
        for match in _EXAMPLE.finditer(text)
    ]


@PAGES
async def test_the_examples_run(
    page: str, least: int, shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(examples(page)) >= least
    monkeypatch.chdir(DOCS.parent / "examples")
    for kind in (sessionstore.SessionStore, sessionstore.AsyncSessionStore):
        from_url: Any = kind.from_url

        def from_here(url: str, *, from_url: Any = from_url, **options: Any) -> Any:
            assert url == "redis://localhost:6379/0"
            return from_url(shared_redis.url, prefix=prefix, **options)

        monkeypatch.setattr(kind, "from_url", from_here)

    namespace: dict[str, Any] = {}
    for code in examples(page):
        result = eval(code, namespace)
        if inspect.iscoroutine(result):
            await result
