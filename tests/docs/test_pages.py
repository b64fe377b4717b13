"""What holds for each page: its links lead somewhere, and the whole stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..support.checkout import ROOT

DOCS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *DOCS]

#: Words, as `wc -w` counts them, without the protocol: no user reads that page.
MOST_WORDS, MOST_WORDS_OF_README = 11_650, 900

_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        file = (page.parent / target) if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_the_pages_are_short() -> None:
    words = {page.name: len(page.read_text(encoding="utf-8").split()) for page in DOCS}
    assert words["README.md"] <= MOST_WORDS_OF_README
    assert sum(words.values()) - words["protocol.md"] <= MOST_WORDS


def test_each_call_of_the_first_page_names_its_environment() -> None:
    texts = [(ROOT / "README.md").read_text(encoding="utf-8")]
    texts += [file.read_text(encoding="utf-8") for file in (ROOT / "examples").iterdir() if file.is_file()]
    calls = [call for text in texts for call in re.findall(r"https?://\S+/sessions/\S+", text)]
    assert calls
    for call in calls:
        assert "project=checkout&environment=staging" in call
