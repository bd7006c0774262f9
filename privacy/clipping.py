"""Vectors of privacy units -> a sum that carries its own sensitivity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.errors import MechanismMisuseError, ParameterError

# Rule 5: clip slightly inside the bound, so that rounding in the last bits cannot leave it.
INSIDE = 1.0 - 1e-6


@dataclass(frozen=True)
class ClippedSum:
    """A sum of contributions, one per privacy unit, each of l2 norm at most ``l2_bound``.

    Guarantees: zeroing out any one unit moves ``value`` by at most ``l2_bound``. There is no serialiser: a bare clipped
    sum never leaves the process (see ``privacy.sealed``). The number of units is secret and not stored.
    """

    value: npt.NDArray[np.float64]
    l2_bound: float

    def __add__(self, other: ClippedSum) -> ClippedSum:
        """Sum over disjoint sets of units; a unit sits in one of them, so the bound does not grow."""
        if self.value.shape != other.value.shape or self.l2_bound != other.l2_bound:
            raise MechanismMisuseError(
                "Two clipped sums do not belong together.",
                f"Shapes {self.value.shape} and {other.value.shape}, bounds {self.l2_bound} and {other.l2_bound}.",
                "Sum only contributions of one round, made under one plan.",
            )
        return ClippedSum(self.value + other.value, self.l2_bound)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise MechanismMisuseError(
            "A clipped sum cannot be pickled or copied out of the process.",
            "It is not noised yet.",
            "Release it through a Mechanism, or seal it for the trusted server.",
        )


def clip_and_sum(
    contributions: npt.NDArray[np.floating], group: npt.NDArray[np.integer], num_groups: int, max_grad_norm: float
) -> list[ClippedSum]:
    """Clip every unit's contribution to ``max_grad_norm`` and add them up per client.

    Args:
        contributions: one row per privacy unit, shape [units, d].
        group: the client of every row, shape [units], values in [0, num_groups).
        num_groups: number of clients; each gets a sum, also without a unit.
        max_grad_norm: the bound C, the same for every client.

    Guarantees: each row enters with norm <= C (1 - 1e-6) + one rounding step of a 64-bit float; the addition runs in
    64-bit floats.

    | row | contributes |
    |---|---|
    | any NaN or inf, or a squared norm that overflows | exactly zero |
    | norm 0 | zero |
    | norm <= C (1 - 1e-6) | itself |
    | no row for a client | that client's sum is zero |

    Raises:
        ParameterError: the bound is not a positive finite number.
    """
    if not (math.isfinite(max_grad_norm) and max_grad_norm > 0):
        raise ParameterError(
            f"max_grad_norm={max_grad_norm} bounds nothing.",
            "The clipping norm must be a positive finite number.",
            "Set privacy.max_grad_norm, for example to 1.0.",
        )
    rows = contributions.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    usable = np.isfinite(norm)
    rows = np.where(usable[:, None], rows, 0.0)
    factor = np.minimum(1.0, max_grad_norm * INSIDE / np.maximum(np.where(usable, norm, 1.0), 1e-300))
    sums = np.zeros((num_groups, contributions.shape[1]))
    np.add.at(sums, group, rows * factor[:, None])
    return [ClippedSum(total, max_grad_norm) for total in sums]
