"""Quantile-adaptive clipping: the norm follows a quantile of the units' norms, by a noised and booked count.

Andrew, Thakkar, McMahan and Ramaswamy, "Differentially private learning with adaptive clipping" (NeurIPS 2021),
algorithm 1. Every unit adds one bit, whether its norm is at most C, shifted to -1/2 or +1/2. The bit travels as one more
coordinate, scaled to s = z_D C / s_b, so that the noise of deviation z_D C on all coordinates is noise of deviation s_b
on the count. With 1/z^2 = 1/z_D^2 + 1/(2 s_b)^2 (their theorem 1) a unit's row is no longer than

    sqrt(C^2 + s^2 / 4) = C z_D / z,

so the round is one Gaussian release of multiplier z with sensitivity C z_D / z: gradients and count are booked together,
in the round's own event, and nothing else is released. What follows from the released count is post-processing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.clipping import INSIDE
from privacy.errors import ParameterError

Array = npt.NDArray[np.float64]
_PER_OCTAVE = 64  # norms are 2^(k/64), a percent apart: few grids, few tables of noise


@dataclass(frozen=True)
class QuantileClipping:
    """One plan's adaptive clipping; the current norm C is handed in, it is released and public.

    Args:
        noise_multiplier: z of the whole round, count included.
        expected_cohort: public; the share of units below C is the noised count over it, never over a realised number.
        quantile: the share of units that should be below C.
        learning_rate: of the geometric update C <- C exp(-learning_rate (share - quantile)).

    | case | result |
    |---|---|
    | empty round | the count is noise around 0: share 1/2 + noise |
    | unit with NaN or inf | zeros, and the bit of a unit above C |
    | noise_multiplier 0 or below, NaN, inf | ParameterError: without noise there is no joint release |
    """

    noise_multiplier: float
    expected_cohort: float
    quantile: float = 0.5
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.noise_multiplier < math.inf and 0 < self.expected_cohort < math.inf):
            raise ParameterError(
                f"Adaptive clipping with noise_multiplier={self.noise_multiplier} cannot be.",
                "The norm follows a noised count; it needs noise, and a public expected cohort.",
                "Set privacy.clipping: fixed, or plan with noise.",
            )

    @property
    def count_noise(self) -> float:
        """s_b, in units: a twentieth of the expected cohort, as the paper has it, but at least 2 z."""
        return max(self.expected_cohort / 20.0, 2.0 * self.noise_multiplier)

    @property
    def gradient_multiplier(self) -> float:
        """z_D = (z^-2 - (2 s_b)^-2)^(-1/2)."""
        return float((self.noise_multiplier**-2 - (2.0 * self.count_noise) ** -2) ** -0.5)

    def joint_bound(self, norm: float) -> float:
        """Length of the longest row with its bit, C z_D / z: the bound of the mechanism in this round."""
        return norm * self.gradient_multiplier / self.noise_multiplier

    def _scale(self, norm: float) -> float:
        return self.gradient_multiplier * norm / self.count_noise

    def with_bits(self, contributions: npt.NDArray[np.floating], norm: float) -> Array:
        """Rows [units, d] -> clipped rows with their bits [units, d + 1], each no longer than ``joint_bound(norm)``."""
        rows = contributions.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            length = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        usable = np.isfinite(length)
        rows[~usable] = 0.0
        below = usable & (length <= norm)
        rows *= np.minimum(1.0, norm * INSIDE / np.maximum(np.where(usable, length, norm), norm / 2))[:, None]
        return np.concatenate([rows, (self._scale(norm) * (below - 0.5))[:, None]], axis=1)

    def split(self, released: Array, norm: float) -> tuple[Array, float]:
        """A released sum [d + 1] -> the gradients' sum [d] and the norm of the next round."""
        share = float(released[-1]) / self._scale(norm) / self.expected_cohort + 0.5
        step = self.learning_rate * (min(1.0, max(0.0, share)) - self.quantile)
        return released[:-1], on_ladder(norm * math.exp(-step))


def on_ladder(norm: float) -> float:
    """The nearest 2^(k / 64): a public rounding of a public number."""
    return float(2.0 ** (round(_PER_OCTAVE * math.log2(norm)) / _PER_OCTAVE))
