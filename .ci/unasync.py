"""Make the drivers' common files for threads from those for asyncio: ``python .ci/unasync.py``.

With ``--check`` it writes nothing, and exits with 1 if a file differs from its output.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "sessionstore"
#: The files for asyncio, and what is made of each.
FILES = {
    f"aio/{name}.py": f"sync/{name}.py" for name in ("api_keys", "environment", "project", "runner", "store", "view")
}
FILES["client/aio.py"] = "client/sync.py"

#: Each is applied in turn to the whole text.
REPLACEMENTS = [
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync (?=def|with|for)", ""),
    (r"\bawait ", ""),
    (r"\b__a(?=enter__|exit__)", "__"),
    (r"\baclose\b", "close"),
    (r"\basync_client\b", "client"),
    (r"^ *self\.driver\.check_loop\(\)\n", ""),
    (r"^import asyncio$", "import time"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bredis\.asyncio\b", "redis"),
    (r"The asyncio (store|view)\b", r"The \1 for threads"),
    (r"for asyncio\b", "for threads"),
    (r"It belongs to one event loop\.", "Any thread may use it."),
    (r"It belongs to the event loop that it is first used on\.", "Any thread may use it."),
    (r"tasks on the event loop", "background threads"),
]


def generate(source: str, target: str) -> str:
    """The text of one file for threads."""
    text = (PACKAGE / source).read_text(encoding="utf-8")
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = f"# Generated from {source} by .ci/unasync.py: change that file instead.\n{text}"
    for action in (["check", "--fix-only", "--select", "I"], ["format"]):
        command = [sys.executable, "-m", "ruff", *action, "--stdin-filename", str(PACKAGE / target), "-"]
        text = subprocess.run(command, input=text, text=True, capture_output=True, check=True).stdout
    return text


def main() -> int:
    """Write or check every file; returns the exit code."""
    checks = sys.argv[1:] == ["--check"]
    stale = []
    for source, target in FILES.items():
        path, text = PACKAGE / target, generate(source, target)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(target)
        if not checks:
            path.write_text(text, encoding="utf-8")
    if checks and stale:
        print(f"Not generated from the files for asyncio: {', '.join(stale)}; run python .ci/unasync.py.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
