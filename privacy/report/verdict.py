"""What a check of ledgers found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Verdict:
    """What was checked, line by line, what failed, and what a check does not show."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    epsilons: dict[str, float | None] = field(default_factory=dict)
    trusted: set[str] = field(default_factory=set)
    promise: str = ""
    """Delta and unit of the epsilons."""
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if no check failed."""
        return not self.failed

    def book(self, adversary: str, epsilon: float, delta: float, unit: str, *, trusted: bool = False) -> None:
        """An epsilon that a ledger holds; of several ledgers the largest counts. A trusted party has none."""
        if trusted:
            self.trusted.add(adversary)
        known = self.epsilons.get(adversary, 0.0)
        finite = known is not None and math.isfinite(epsilon)
        self.epsilons[adversary] = max(known, epsilon) if finite and known is not None else None
        self.promise = f"at delta {delta:g}, unit {unit}"

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "ok": self.ok,
            "passed": self.passed,
            "failed": self.failed,
            "epsilon": self.epsilons,
            "promise": self.promise,
            "notes": self.notes,
        }

    def to_text(self) -> str:
        """For people: one line per check, then epsilon per adversary."""
        lines = [f"ok    {line}" for line in self.passed] + [f"FAIL  {line}" for line in self.failed]
        lines += [f"note  {line}" for line in self.notes]
        for name, value in self.epsilons.items():
            lines.append(
                f"      against {name}: "
                + (
                    "none: trusted"
                    if name in self.trusted
                    else "no finite epsilon"
                    if value is None
                    else f"epsilon {rounded_up(value)} {self.promise}"
                )
            )
        lines.append("verified" if self.ok else "NOT VERIFIED")
        return "\n".join(lines) + "\n"


def rounded_up(epsilon: float) -> str:
    """Four decimals, never less than the number itself: a printed promise may not be stronger than the computed one."""
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}"
