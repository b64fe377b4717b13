"""A copy of this working tree, for tests that do in it what a reader does."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from .coverage import unmeasured

__all__ = ["ROOT", "copy_tree", "make_python", "make_repository", "require_package_index", "require_program"]

ROOT = Path(__file__).resolve().parents[2]


def copy_tree(folder: Path) -> Path:
    """Copy the files that git tracks or would track to a new folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def make_repository(folder: Path) -> Path:
    """Make a git repository that holds this working tree."""
    copy_tree(folder)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.com")
    for command in ("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--no-verify", "--message", "tree"):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def make_python(folder: Path) -> Path:
    """Make an empty environment of Python; returns its programs' folder.

    Its pip is that of the tests, which runs on it: installing another one takes longer than the packages.
    """
    require_package_index()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], env=unmeasured(), check=True)
    pip = folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip --python {folder}/bin/python "$@"\n', encoding="utf-8")
    pip.chmod(0o755)
    return pip.parent


def require_program(name: str, package: str) -> str:
    """The path of a program; without it the test is skipped, or fails under CI=true. `package` is Debian's."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        _give_up(f"{name} is not installed (Debian: apt-get install {package})")
    return path


def require_package_index() -> None:
    """Skip where pip can't install packages; under CI=true that is a failure."""
    if not _index_answers():
        _give_up("pip can't reach its package index")


@functools.cache
def _index_answers() -> bool:
    command = [sys.executable, "-m", "pip", "index", "versions", "--retries", "1", "--timeout", "10", "msgspec"]
    return subprocess.run(command, env=unmeasured(), capture_output=True, check=False).returncode == 0


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
