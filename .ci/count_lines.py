"""Count lines of code: ``python .ci/count_lines.py sessionstore gateway``.

Blank lines, comments and docstrings don't count. Generated files have a sum of their own.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def count_python(text: str) -> int:
    """Lines of a Python file that hold code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def count_lua(text: str) -> int:
    """Lines of a Lua file that hold code; no script has a block comment."""
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("--"))


def main(folders: list[str]) -> None:
    """Print one sum for each folder and kind of file."""
    for folder in folders:
        sums: Counter[str] = Counter()
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix not in (".py", ".lua"):
                continue
            text = path.read_text(encoding="utf-8")
            kind = "generated" if text.startswith("# Generated from ") else path.suffix[1:]
            sums[kind] += count_python(text) if path.suffix == ".py" else count_lua(text)
        print(folder, ", ".join(f"{kind} {count}" for kind, count in sorted(sums.items())))


if __name__ == "__main__":
    main(sys.argv[1:])
