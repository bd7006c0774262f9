"""Noised counts of federated evaluation -> a table with intervals. Post-processing: reads released numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Z = 1.959964  # 95 %
LEAST = 4.0  # noise deviations that a number of people must exceed to be told from nobody


def estimates(value: npt.NDArray[np.float64], noise_std: float, groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Mean accuracy per person and group out of a released sum of ``evaluation_sums`` [2 G].

    The interval is Fieller's (1954) for a ratio of two sums that are noised alike; it covers the privacy noise, whose
    deviation is known, and the drawing of people, by the largest variance that figures in [-1, 1] can have.

    | case | result |
    |---|---|
    | fewer people, as noised, than 4 noise deviations | no accuracy: `too_few` |
    | not finite | the same |
    | an interval beyond [0, 1] | cut to it |
    """
    half = len(groups)
    return {name: _estimate(float(value[g]), float(value[half + g]), noise_std) for g, name in enumerate(groups)}


def _estimate(people: float, margin: float, noise_std: float) -> dict[str, Any]:
    if not (math.isfinite(people) and math.isfinite(margin)) or people <= max(LEAST * noise_std, 1.0):
        return {"too_few": True, "noised_people": people, "noise_std": noise_std}
    # All r with (margin - r people)^2 <= Z^2 (noise (1 + r^2) + people (1 - r^2)), a quadratic in r.
    noise = noise_std**2
    a = people**2 + Z**2 * (people - noise)
    b = margin * people
    c = margin**2 - Z**2 * (noise + people)
    root = math.sqrt(max(b * b - a * c, 0.0))
    low, high, middle = ((min(1.0, max(-1.0, r)) + 1) / 2 for r in ((b - root) / a, (b + root) / a, margin / people))
    return {
        "too_few": False,
        "accuracy_per_person": middle,
        "interval": [low, high],
        "noised_people": people,
        "noise_std": noise_std,
    }
