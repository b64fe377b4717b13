"""What an environment offers: its published mocks and its scenarios.

A *published* mock may be activated by itself. A *scenario* is a bundle of mocks, some of which may be *scenario-local*:
they belong to that scenario alone and can't be activated by themselves. Drafts do not appear here.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Catalog", "Mock", "Scenario"]


class Mock(Struct, rename="camel", frozen=True):
    """A mock by its id, ``ovr_…``, and its name."""

    id: str
    name: str


class Scenario(Struct, rename="camel", frozen=True):
    """A scenario: the ids of its mocks, published or local, in the order they apply; `local_mocks` are its own."""

    id: str
    name: str
    url_id: str
    mocks: tuple[str, ...] = ()
    local_mocks: tuple[Mock, ...] = ()


class Catalog(Struct, rename="camel", frozen=True):
    """The published mocks and the scenarios of one environment."""

    mocks: tuple[Mock, ...] = ()
    scenarios: tuple[Scenario, ...] = ()
