"""``python -m gateway``; see `serve`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, program: str = "python -m gateway") -> int:
    """Run the gateway until a signal stops it; returns the exit code. `program` is its name in the help."""
    try:
        from .serve import run
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] in ("gateway", "sessionstore"):
            raise
        print(f"The gateway needs {exc.name}; install sessionstore[gateway].", file=sys.stderr)  # noqa: T201  for a person
        return 2
    return run(sys.argv[1:] if arguments is None else arguments, program)


if __name__ == "__main__":
    sys.exit(main())
