"""What a person sees: a live table on a terminal, plain lines without one."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedpref.display import Display

_BAR = 24
_EVERY = 5.0  # seconds between two plain progress lines


def make_display() -> Display:
    """Live on a terminal, plain lines otherwise."""
    console = Console(stderr=True)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay()


def epsilon_cell(figures: Mapping[str, Any]) -> str:
    """Epsilon spent (an upper bound) of the budget, against readers, with its unit and delta."""
    spent, target = figures.get("epsilon_reader"), figures.get("target_epsilon")
    if spent is None:
        return "no finite epsilon"
    of = f" of {target:g}" if target is not None else ""
    return f"<= {math.ceil(spent * 1000) / 1000:.3f}{of} (unit {figures['unit']}, delta {figures['delta']:g})"


class PlainDisplay(Display):
    """Lines on stderr; progress at most every five seconds, rounds ten times a run."""

    def __init__(self) -> None:
        self._last = 0.0

    def say(self, text: str) -> None:
        """One line."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def progress(self, what: str, done: int, total: int) -> None:
        """A line now and then, and one at the end."""
        if done >= total or time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            self.say(f"{what}: {done}/{total}")

    def log(self, figures: Mapping[str, Any]) -> None:
        """A line for every tenth of the rounds."""
        number, total = int(figures["round"]), int(figures["num_rounds"])
        if number * 10 // total != (number - 1) * 10 // total:
            self.say(
                f"round {number}/{total}  expected cohort {figures['expected_cohort']:g}  "
                f"epsilon (readers) {epsilon_cell(figures)}"
            )


class LiveDisplay(Display):
    """One table that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._steps: dict[str, str] = {}
        self._round: Mapping[str, Any] = {}

    def say(self, text: str) -> None:
        """A line above the table."""
        self._console.print(text, markup=False, highlight=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """A row of the table."""
        filled = _BAR * done // max(total, 1)
        self._steps[what] = f"{'█' * filled}{'░' * (_BAR - filled)} {done}/{total}"
        self._draw()

    def log(self, figures: Mapping[str, Any]) -> None:
        """The round's row."""
        self._round = figures
        self._draw()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._live:
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        table = Table.grid(padding=(0, 2))
        for what, bar in self._steps.items():
            table.add_row(what, bar)
        if self._round:
            f = self._round
            filled = _BAR * int(f["round"]) // int(f["num_rounds"])
            table.add_row("rounds", f"{'█' * filled}{'░' * (_BAR - filled)} {f['round']}/{f['num_rounds']}")
            table.add_row("expected cohort", f"{f['expected_cohort']:g} (the real one is secret)")
            table.add_row("epsilon spent (readers)", epsilon_cell(f))
        if self._live is None:
            self._live = Live(table, console=self._console, refresh_per_second=8)
            self._live.start()
        else:
            self._live.update(table)
