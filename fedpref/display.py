"""What a person sees while a run goes on; the default says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Display:
    """Silent. The command line puts a live table or plain lines in its place."""

    def say(self, text: str) -> None:
        """One line of news."""

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a long step is."""

    def log(self, figures: Mapping[str, Any]) -> None:
        """One round's released figures (it is a tracker, too)."""

    def close(self) -> None:
        """No more news."""
