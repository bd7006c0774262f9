"""What is left: per unit and adversary, of a ledger's budget or of a project's cap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privacy.accounting import epsilon
from privacy.entries import LedgerView, read_ledger
from privacy.events import Event, TrustedEvent
from privacy.fitting import rounds_that_fit
from privacy.project import ProjectView, is_project, read_project
from privacy.report.build import evaluation_paths, ledger_paths, project_paths
from privacy.report.verdict import rounded_up
from privacy.units import Adversary

_MANY = 1_000_000  # rounds; more than this is "many"


@dataclass(frozen=True)
class BudgetRow:
    """One book, unit and adversary. ``None``: no cap, infinite, or nothing to say."""

    book: str
    unit: str
    adversary: str
    delta: float
    measure: str  # "epsilon" (accountant), "filter bound" (over several runs), or "label epsilon" (pure, a sum)
    trusted: bool
    spent: float | None
    cap: float | None
    left: float | None
    rounds_left: int | None  # at the noise of the last round

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def budget_rows(target: Path) -> list[BudgetRow]:
    """Rows of a run folder (federation, nodes, the run's copy of the project's books), a ledger, or a project's books.

    Units are never added to one another, nor are books.

    Raises:
        LedgerError: a book is missing or broken.
    """
    if target.is_dir():
        rows = [
            row
            for path in [*ledger_paths(target), *evaluation_paths(target)]
            for row in _ledger_rows(read_ledger(path))
        ]
        return rows + [
            row for path in project_paths(target) for row in _project_rows(read_project(path), "project (copy)")
        ]
    if is_project(target):
        return _project_rows(read_project(target), target.name)
    return _ledger_rows(read_ledger(target))


def _ledger_rows(view: LedgerView) -> list[BudgetRow]:
    rows, header = [], view.header
    for adversary in Adversary:
        total = view.nominal(adversary)
        trusted = any(isinstance(event, TrustedEvent) for event in total)
        spent, cap = view.epsilon(adversary), None if trusted else header.target_epsilon
        last = view.reservations[-1].events[adversary] if view.reservations else None

        def fits(more: Counter[Event], total: Counter[Event] = total, cap: float | None = cap) -> bool:
            return cap is not None and epsilon(total + more, header.target_delta) <= cap

        rounds = None if cap is None or last is None else _rounds_left(last, fits)
        measured = _finite(spent)
        rows.append(
            _row(
                view.header.scope,
                header.unit.value,
                adversary.value,
                header.target_delta,
                trusted,
                measured,
                cap,
                rounds,
            )
        )
    return rows


def _project_rows(view: ProjectView, name: str) -> list[BudgetRow]:
    rows = []
    for unit, cap in view.caps.items():
        runs = [run for run in view.runs if run.unit is unit and run.rounds]
        for adversary in Adversary:
            total, watch = view.spent(unit, adversary), cap.filter(adversary)
            trusted = any(isinstance(event, TrustedEvent) for event in total)
            last = runs[-1].rounds[-1][1][adversary] if runs else None
            room = watch.allowance - cap.cost(total).rdp
            cost = cap.cost({last: 1}).rdp if last is not None else 0.0
            rounds = max(0, math.floor(room / cost)) if 0 < cost < math.inf else None
            spent = None if trusted else _finite(watch.bound(cap.cost(total)))
            rows.append(
                _row(
                    name, unit.value, adversary.value, cap.delta, trusted, spent, watch.epsilon, rounds, "filter bound"
                )
            )
    return rows + [
        _row(name, unit.value, "everybody", 0.0, False, view.label_total(unit), cap, None, "label epsilon")
        for unit, cap in view.label_caps.items()
    ]


def _row(  # noqa: PLR0917 - two callers, right above
    book: str,
    unit: str,
    adversary: str,
    delta: float,
    trusted: bool,
    spent: float | None,
    cap: float | None,
    rounds: int | None,
    measure: str = "epsilon",
) -> BudgetRow:
    left = None if cap is None or spent is None else max(0.0, cap - spent)
    return BudgetRow(book, unit, adversary, delta, measure, trusted, spent, cap, left, rounds)


def _rounds_left(event: Event, fits: Callable[[Counter[Event]], bool]) -> int:
    """The most further rounds of an event that fit, by doubling and bisection."""
    most = 1
    while most < _MANY and fits(Counter({event: most})):
        most *= 2
    return rounds_that_fit(Counter({event: min(most, _MANY)}), lambda more: fits(Counter(more)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def budget_text(rows: list[BudgetRow]) -> str:
    """The rows as a table; spent is rounded up, left is rounded down."""
    lines = [
        f"{'book':<18} {'unit':<8} {'against':<14} {'spent':>18} {'cap':>8} {'left':>8} {'rounds left':>12}  delta"
    ]
    for row in rows:
        infinite = "none: trusted" if row.trusted else "INFINITE"
        spent = infinite if row.spent is None else rounded_up(row.spent)
        cells = [
            "-" if row.cap is None else f"{row.cap:g}",
            "-" if row.left is None else f"{math.floor(row.left * 1e4) / 1e4:.4f}",
            "-" if row.rounds_left is None else "many" if row.rounds_left >= _MANY else f"{row.rounds_left:,}",
        ]
        lines.append(
            f"{row.book:<18} {row.unit:<8} {row.adversary:<14} {spent:>18} {cells[0]:>8} {cells[1]:>8} {cells[2]:>12}"
            f"  {row.delta:g}" + (f"  ({row.measure})" if row.measure != "epsilon" else "")
        )
    return "\n".join(lines) + "\n"
