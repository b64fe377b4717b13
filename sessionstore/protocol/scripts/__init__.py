"""The Lua scripts, one for each operation. The head of each lists what it takes, returns and publishes.

Redis scripts can't import each other, so a line ``--@include lib/clock`` is replaced with that file. Fragments in
``lib/`` define local functions only: a Lua global would remain for later scripts.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from importlib.resources.abc import Traversable

from msgspec import Struct

_INCLUDE = re.compile(r"^--@include (lib/[a-z_]+)$", re.MULTILINE)


class Script(Struct, frozen=True):
    """A script: its name, its text, and the SHA-1 of the text for EVALSHA."""

    name: str
    text: str
    sha: str


def _read_folder(folder: Traversable, prefix: str = "") -> dict[str, str]:
    return {
        prefix + entry.name.removesuffix(".lua"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".lua")
    }


_FRAGMENTS = _read_folder(resources.files(__name__) / "lib", "lib/")


def compose(name: str, text: str) -> Script:
    """Make a script from its text, with the fragments that it includes."""
    text = _INCLUDE.sub(lambda match: _FRAGMENTS[match[1]].rstrip(), text)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


#: Read at import: a process that runs out of file descriptors later can still make its first call of a script.
_SCRIPTS = {name: compose(name, text) for name, text in sorted(_read_folder(resources.files(__name__)).items())}


def load_script(name: str) -> Script:
    """Return the script of this name."""
    return _SCRIPTS[name]


def script_names() -> list[str]:
    """List the names of the scripts in alphabetical order."""
    return list(_SCRIPTS)
