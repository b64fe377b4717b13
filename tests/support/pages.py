"""Files that the pages show."""

from __future__ import annotations

from .checkout import ROOT
from .reader import blocks

__all__ = ["shown_file"]


def shown_file(page: str, name: str, language: str = "python") -> str:
    """A block of code of a page in docs/ whose first line is the name of its file."""
    [block] = [block for block in blocks(ROOT / "docs" / page, language) if block.startswith(f"# {name}\n")]
    return block
