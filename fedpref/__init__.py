"""fedpref: a shared language model learns from people's private preference feedback, and the books show what it cost.

``fedpref.load_recipe(path, **overrides)``, its ``.plan()`` and ``.run()``, and ``fedpref.Run(path)`` are the Python door; the
command line is a shell over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedpref.version import __version__

if TYPE_CHECKING:
    from fedpref.api import LoadedRecipe, Run, load_recipe
    from fedpref.display import Display

__all__ = ["Display", "LoadedRecipe", "Run", "__version__", "load_recipe"]


def __getattr__(name: str) -> Any:
    """Import the door on first use, so that ``import fedpref.config`` stays free of torch."""
    if name in __all__:
        from fedpref import api

        return getattr(api, name)
    raise AttributeError(f"module 'fedpref' has no attribute {name!r}")
