"""fence.lua: replicated, and without effect. That it is replicated: tests/faults/test_durable.py."""

from __future__ import annotations

from ..support.scripts import Scripts


def test_it_changes_nothing(scripts: Scripts) -> None:
    scripts.put("ci-42")
    before = scripts.everything()
    scripts.messages()

    assert scripts.run("fence", [scripts.head], []) == {"status": "ok"}

    assert scripts.everything() == before
    assert scripts.messages() == []


def test_before_the_first_write(scripts: Scripts) -> None:
    assert scripts.run("fence", [scripts.head], []) == {"status": "ok"}

    assert scripts.everything() == {}
