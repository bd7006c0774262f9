"""``python -m fedpref`` is ``fedpref``; it says so if this Python is too old to read the rest."""

from __future__ import annotations

import sys

from fedpref.errors import PythonVersionError

OLDEST = (3, 11)


def main() -> None:
    """Check the version before anything is imported that an older one cannot read."""
    found = ".".join(map(str, sys.version_info[:3]))
    if tuple(sys.version_info[:2]) < OLDEST:
        error = PythonVersionError(
            f"Python {found} is too old.",
            "fedpref needs 3.11, 3.12 or 3.13.",
            "Install one of them and make a new environment, or: make PYTHON=… demo",
        )
        sys.stderr.write(error.diagnostics() + "\n")
        sys.exit(1)
    from fedpref.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
