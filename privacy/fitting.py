"""What would fit, when a plan does not: fewer rounds, or more noise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from privacy.accounting import Composition
from privacy.events import Event

Fits = Callable[[Composition], bool]

_MOST_NOISE = 64.0  # times the planned one; beyond it "more noise" is no advice
_CLOSE = 1.005


def rounds_that_fit(planned: Composition, fits: Fits) -> int:
    """The most rounds of a plan that fit, by bisection: composition is monotone. Every event is cut alike."""
    low, high = 0, sum(planned.values())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(_cut(planned, middle)) else (low, middle - 1)
    return low


def _cut(planned: Composition, rounds: int) -> Counter[Event]:
    total = sum(planned.values())
    return Counter({event: -(-count * rounds // total) for event, count in planned.items()})


def noise_that_fits(planned: Composition, fits: Fits) -> float | None:
    """The least noise multiplier, to half a percent and rounded up, at which all rounds fit; None if none helps."""
    multipliers: list[float] = [z for event in planned if (z := getattr(event, "noise_multiplier", None)) is not None]
    if not multipliers or not fits(_louder(planned, _MOST_NOISE)):
        return None
    low, high = 1.0, _MOST_NOISE
    while high / low > _CLOSE:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(_louder(planned, middle)) else (middle, high)
    return math.ceil(max(multipliers) * high * 1000) / 1000


def _louder(planned: Composition, factor: float) -> Counter[Event]:
    louder: Counter[Event] = Counter()
    for event, count in planned.items():
        z = getattr(event, "noise_multiplier", None)
        changed: Any = event if z is None else replace(event, noise_multiplier=z * factor)
        louder[changed] += count
    return louder


def advice(planned: Composition, fits: Fits) -> str:
    """One sentence for a refusal: how many rounds, or which noise, would fit."""
    rounds, noise = rounds_that_fit(planned, fits), noise_that_fits(planned, fits)
    parts = [f"{rounds:,} rounds at this noise"] if rounds else []
    parts += [f"noise_multiplier {noise:g} for all {sum(planned.values()):,} rounds"] if noise is not None else []
    return f"What would fit: {', or '.join(parts)}." if parts else "No number of rounds fits, nor does more noise help."
