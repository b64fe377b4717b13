"""The scripts are read at import, and never from a file afterwards."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sessionstore.protocol.scripts import compose, load_script, script_names


def test_a_process_out_of_file_descriptors_still_loads_every_script(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(Path, "open", fail)

    for name in script_names():
        assert load_script(name).name == name
    assert "--@include" not in compose("mine", "--@include lib/clock\n").text
