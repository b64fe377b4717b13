"""Catalog documents that are deep, huge, odd or damaged: each is read, or refused in a sentence, within bounds.

They reach no gateway: the command line and the library read them. Here a process with bounds on memory and time does.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sessionstore.catalog.document import (
    MAX_DOCUMENT_BYTES,
    MAX_ENVIRONMENTS,
    MAX_MOCKS,
    MAX_SCENARIOS,
    MAX_TOML_BYTES,
    parse_catalog_document,
)
from sessionstore.errors import InvalidCatalogError

from ..support.checkout import ROOT

__all__ = ["Document", "attack", "documents"]

#: Bytes of address space, and seconds of CPU for all documents: a few hundred, of at most 8 MiB.
_MOST_BYTES, _MOST_CPU_S = 1024**3, 60


@dataclass(frozen=True, repr=False)
class Document:
    """One document. `valid` is None if its damage decides."""

    what: str
    syntax: Literal["json", "toml"]
    data: bytes
    valid: bool | None = False

    def __repr__(self) -> str:
        return f"{self.what} ({self.syntax}, {len(self.data)} bytes)"


def documents(source: random.Random) -> list[Document]:
    """Make the documents."""
    made = [*_deep_toml(), *_odd_toml(), *_deep_json(), *_large(source)]
    toml = (ROOT / "examples" / "catalog.toml").read_bytes()
    plain = json.dumps(_catalog(3, 2)).encode()
    made += [Document(f"damaged {i}", "toml", _damage(source, toml), None) for i in range(150)]
    made += [Document(f"damaged {i}", "json", _damage(source, plain), None) for i in range(150)]
    made += [Document("the example", "toml", toml, True), Document("a small one", "json", plain, True)]
    return made


def _deep_toml() -> list[Document]:
    made = []
    for depth in (9, 100, 1000, 20_000, 200_000):
        dotted = "a." * depth + "a"
        made += [
            Document(f"{what}, {depth} deep", "toml", text.encode())
            for what, text in {
                "key": f"{dotted} = 1",
                "spaced key": f"{'a . ' * depth}a = 1",
                "quoted key": '"a.b".' * depth + "a = 1",
                "table": f"[{dotted}]",
                "array of tables": f"[[{dotted}]]",
                "inline table": f"a = {{ {dotted} = 1 }}",
                "array": "a = " + "[" * depth + "]" * depth,
                "open array": "a = " + "[" * depth,
                "nested inline tables": "a = " + "{a=" * depth + "1" + "}" * depth,
            }.items()
        ]
    return made


def _odd_toml() -> list[Document]:
    many = MAX_TOML_BYTES // 32
    texts = {
        "many deep keys": "".join(f"a{i}.b.c.d.e.f.g.h = 1\n" for i in range(many)),
        "many tables": "".join(f"[a{i}.b.c.d.e.f]\n" for i in range(many)),
        "one table again and again": "[[a.b.c.d.e.f.g]]\n" * many,
        "dots in a string": f'a = "{"a." * 100_000}"',
        "dots in a comment": f"# {'a.' * 100_000}",
        "dots in a literal": f"a = '{'a.' * 100_000}'",
        "dots in a long string": f'a = """{"a." * 100_000}"""',
        "an open string": f'a = "{"a." * 100_000}',
        "an open long string": f'a = """{"a." * 100_000}',
        "backslashes": f'a = "{chr(92) * 100_001}"',
        "quotes": '"' * 100_000,
        "single quotes": "'" * 100_001,
        "a long number": f"a = {'9' * 100_000}",
        "a long date": f"a = 1979-05-27T07:32:00.{'9' * 100_000}Z",
        "a byte order mark": "\ufeffa = 1",
        "NUL": "a = \0",
        "a surrogate": 'a = "\\ud800"',
        "spaces": " " * 900_000,
        "line breaks": "\r\n" * 400_000,
        "equals signs": "=" * 900_000,
        "letters": "a" * 900_000,
        "dots": "." * 900_000,
        "brackets": "[" * 900_000,
        "spaces and dots": "a " * 450_000,
        "too many bytes": "#" * (MAX_TOML_BYTES + 1),
    }
    made = [Document(what, "toml", text.encode()) for what, text in texts.items()]
    return [*made, Document("not UTF-8", "toml", b'a = "\xff"'), Document("UTF-16", "toml", "a = 1".encode("utf-16"))]


def _deep_json() -> list[Document]:
    texts = {
        **{f"array, {n} deep": "[" * n + "]" * n for n in (100, 100_000)},
        **{f"object, {n} deep": '{"a":' * n + "1" + "}" * n for n in (100, 100_000)},
        "an open array": "[" * 1_000_000,
        "deep environments": '{"project":"a","environments":' + '{"a":' * 900 + "1" + "}" * 902,
        "the same name twice": '{"project":"a","project":"b","environments":{}}',
        "the same name often": "{" + '"a":1,' * 100_000 + '"a":1}',
        "many names": "{" + ",".join(f'"a{i}":1' for i in range(400_000)) + "}",
        "many empty arrays": "[" + "[]," * 2_000_000 + "[]]",
        "a long number": '{"project":' + "9" * 1_000_000 + "}",
        "a long fraction": '{"project":0.' + "9" * 1_000_000 + "}",
        "not a number": '{"project":NaN}',
        "a surrogate": '{"project":"a","environments":{"\\ud800":{}}}',
        "a byte order mark": "\ufeff{}",
        "a large string": '"' + "a" * 8_000_000 + '"',
        "escapes": '"' + "\\u0041" * 1_000_000 + '"',
        "too many bytes": " " * (MAX_DOCUMENT_BYTES + 1),
        "nothing": "",
        "null": "null",
    }
    made = [Document(what, "json", text.encode()) for what, text in texts.items()]
    return [*made, Document("not UTF-8", "json", b'{"project":"\xff"}')]


def _catalog(mocks: int, scenarios: int, environments: int = 1, name: str = "A") -> dict[str, object]:
    environment = {
        "mocks": [{"id": f"ovr_{i}", "name": name} for i in range(mocks)],
        "scenarios": [
            {"id": f"scn_{i}", "name": name, "urlId": f"s{i}", "mocks": [f"ovr_{i % mocks}"]} for i in range(scenarios)
        ],
    }
    return {"project": "a", "environments": {f"e{i}": environment for i in range(environments)}}


def _large(source: random.Random) -> list[Document]:
    cases: list[tuple[str, dict[str, object], bool]] = [
        ("the most mocks", _catalog(MAX_MOCKS, 1), True),
        ("too many mocks", _catalog(MAX_MOCKS + 1, 1), False),
        ("the most scenarios", _catalog(1, MAX_SCENARIOS), True),
        ("too many scenarios", _catalog(1, MAX_SCENARIOS + 1), False),
        ("the most environments", _catalog(3, 2, MAX_ENVIRONMENTS), True),
        ("too many environments", _catalog(3, 2, MAX_ENVIRONMENTS + 1), False),
        ("a catalog of too many bytes", _catalog(MAX_MOCKS, 1, name="ü" * 200), False),
    ]
    wrong: tuple[Any, ...] = (None, 5, "", "x", [], {}, True, [[]], "\x00", "x" * 300, {"a": {}})
    for place in ("project", "environments", "mocks", "scenarios", "id", "name", "urlId", "more"):
        for value in wrong:
            document = _catalog(2, 2)
            environment = document["environments"]["e0"]  # type: ignore[index]
            at = document if place in ("project", "environments") else environment
            if place in ("id", "name", "urlId", "more"):
                at = source.choice(environment["mocks" if place == "name" else "scenarios"])
            at[place] = value
            empty = value in ([], {}) and isinstance(value, list if place in ("mocks", "scenarios") else dict)
            good = (place == "environments" and (empty or value == {"a": {}})) or (place == "scenarios" and empty)
            good |= place in ("name", "urlId", "project") and value == "x"
            cases.append((f"{place} is {value!r:.20}", document, good))
    return [Document(what, "json", json.dumps(document).encode(), valid) for what, document, valid in cases]


def _damage(source: random.Random, data: bytes) -> bytes:
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) + 1)
        end = at + source.randint(1, 60)
        data = source.choice(
            (
                data[:at] + bytes([source.randrange(256)]) + data[at + 1 :],
                data[:at] + data[end:],
                data[:end] + data[at:],
                data[:at]
                + source.choice((b".", b"[", b"{", b'"', b"'", b'"""', b"\n", b"=", b"\\", b"\0"))
                + data[at:],
            )
        )
    return data


def _read(document: Document) -> str:
    """Read one; returns what is wrong."""
    try:
        parse_catalog_document(document.data, document.syntax)
    except InvalidCatalogError as exc:
        if document.valid:
            return f"it is refused: {exc!s:.200}"
        return "" if 10 < len(str(exc)) < 1000 else f"the sentence has {len(str(exc))} characters"
    except (Exception, MemoryError) as exc:
        return f"it raises {exc!r:.200}"
    return "it is accepted" if document.valid is False else ""


def main() -> None:
    """Read the documents that come pickled on standard input, within the bounds; print what is wrong with each."""
    documents = pickle.load(sys.stdin.buffer)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MOST_CPU_S, _MOST_CPU_S))
    for document in documents:
        print(json.dumps(_read(document)), flush=True)


async def attack(inputs: Sequence[Document]) -> list[str]:
    """Read them in a process of their own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    output, _ = await process.communicate(pickle.dumps(inputs))
    read = [json.loads(line) for line in output.splitlines()]
    failures = [f"{document!r}: {wrong}" for document, wrong in zip(inputs, read, strict=False) if wrong]
    if process.returncode or len(read) < len(inputs):
        failures.append(f"{inputs[len(read)]!r} exceeds a bound: exit code {process.returncode}")
    return failures


if __name__ == "__main__":
    main()
