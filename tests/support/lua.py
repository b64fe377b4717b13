"""Write each script to a folder with its fragments included, as Redis gets it, for luacheck."""

from __future__ import annotations

import sys
from pathlib import Path

from sessionstore.protocol.scripts import load_script, script_names


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in script_names():
        (folder / f"{name}.lua").write_text(load_script(name).text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
