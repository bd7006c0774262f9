"""What other packages offer by entry point: loaded by name, never by a path that a file gives. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from importlib.metadata import EntryPoint
from typing import Any

from reward.errors import RewardError


def load_plugin(point: EntryPoint, what: str, error: type[RewardError]) -> Any:
    """What an entry point offers; ``what`` it is called in the message, for example "objective".

    Raises:
        error: its package cannot be imported, or lacks it.
    """
    try:
        return point.load()
    except Exception as reason:  # another package's import may raise anything
        raise error(
            f"The {what} {point.name!r} cannot be loaded.",
            f"{type(reason).__name__}: {reason}"[:200],
            "Mend or reinstall the package that offers it.",
        ) from reason


def nearest(name: str, offered: Collection[str], otherwise: str) -> str:
    """What to do about a name that nothing has: the nearest one that there is, else ``otherwise``."""
    near = difflib.get_close_matches(name, offered, n=1)
    return f"Did you mean {near[0]!r}?" if near else otherwise
