"""``python -m sessionstore.cli``: the ``sessionstore`` command, if its script is not on the path."""

from . import main

if __name__ == "__main__":
    main()
