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
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if no check failed."""
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "ok": self.ok,
            "passed": self.passed,
            "failed": self.failed,
            "epsilon": self.epsilons,
            "notes": self.notes,
        }

    def to_text(self) -> str:
        """For people: one line per check, then epsilon per adversary."""
        lines = [f"ok    {line}" for line in self.passed] + [f"FAIL  {line}" for line in self.failed]
        lines += [f"note  {line}" for line in self.notes]
        for name, value in self.epsilons.items():
            lines.append(
                f"      against {name}: " + ("no finite epsilon" if value is None else f"epsilon {rounded_up(value)}")
            )
        lines.append("verified" if self.ok else "NOT VERIFIED")
        return "\n".join(lines) + "\n"


def rounded_up(epsilon: float) -> str:
    """Four decimals, never less than the number itself: a printed promise may not be stronger than the computed one."""
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}"
