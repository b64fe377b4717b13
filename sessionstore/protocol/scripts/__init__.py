"""The Lua scripts, one for each operation; each says at its head what it takes, returns and publishes.

Redis scripts can't import each other, so a line ``--@include lib/clock`` is replaced with that file. Fragments in
``lib/`` hold local functions only: a Lua global that is set once would break later scripts.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources

from msgspec import Struct

_INCLUDE = re.compile(r"^--@include (lib/[a-z_]+)$", re.MULTILINE)


class Script(Struct, frozen=True):
    """A script as Redis takes it: its name, its text, and the SHA-1 of the text that EVALSHA names."""

    name: str
    text: str
    sha: str


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")


def compose(name: str, text: str) -> Script:
    """Make a script of its text: put the fragments in that it includes."""
    text = _INCLUDE.sub(lambda match: _read(match[1]).rstrip(), text)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def load_script(name: str) -> Script:
    """Read a script from the package, once."""
    return compose(name, _read(name))


def script_names() -> list[str]:
    """Every operation's script, in alphabetical order."""
    return sorted(
        entry.name.removesuffix(".lua") for entry in resources.files(__name__).iterdir() if entry.name.endswith(".lua")
    )
