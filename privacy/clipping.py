"""Vectors of privacy units -> a sum on an integer grid that carries its own sensitivity.

Why every unit is rounded by itself, and towards zero. Let v be a unit's clipped contribution, |v| <= C, and t(v) its
coordinates cut towards zero to multiples of the grid step. Then |t(v)_i| <= |v_i| in every coordinate, hence
|t(v)| <= |v| <= C: rounding cannot push a unit over the bound. The client's sum is a sum of t(v), exact (integers below
2^53), so taking one unit away moves it by t(v) exactly, also when the unit shares its client with others. Rounding the
*sum* instead would not do: round(x + v) - round(x) can be longer than v by up to half a step in every coordinate.
The price is a pull towards zero of less than a step per coordinate and unit; the step is chosen so that this stays
below C 2^-13 in norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.errors import MechanismMisuseError, ParameterError

# Rule 5: clip slightly inside the bound, so that rounding in the last bits cannot leave it.
INSIDE = 1.0 - 1e-6
SMALLEST_BOUND, LARGEST_BOUND = 2.0**-200, 2.0**200


def grid_step(max_grad_norm: float, dimension: int) -> float:
    """The grid of a sum: a power of two, from public constants alone (bound C and dimension d).

    C is between 2^k and 2^(k+1) steps, k = 16 for d <= 64 and growing with sqrt(d) up to 24, so that cutting all d
    coordinates shortens a vector by at most sqrt(d) steps: below C 2^-13 up to d = 2^22, C 2^-8 at d = 2^32.

    Raises:
        ParameterError: C is not a number in [2^-200, 2^200] (below, squares of a record would vanish unclipped).
    """
    if not SMALLEST_BOUND <= max_grad_norm <= LARGEST_BOUND:  # so written, NaN is refused too
        raise ParameterError(
            f"max_grad_norm={max_grad_norm} bounds nothing.",
            "The clipping norm must be a positive finite number in an ordinary range.",
            "Set privacy.max_grad_norm, for example to 1.0.",
        )
    exponent = 16 + min(8, max(0, math.ceil(math.log2(max(dimension, 1)) / 2) - 3))
    return float(2.0 ** (math.frexp(max_grad_norm)[1] - 1 - exponent))


@dataclass(frozen=True)
class ClippedSum:
    """A sum of contributions, one per privacy unit, each of l2 norm at most ``l2_bound``, on the grid ``step``.

    Guarantees: every number is a multiple of ``step``; zeroing out any one unit moves ``value`` by at most ``l2_bound``,
    exactly, as the integers ``value / step`` are below 2^53. There is no serialiser: a bare clipped
    sum never leaves the process (see ``privacy.sealed``). The number of units is secret and not stored.
    """

    value: npt.NDArray[np.float64]
    l2_bound: float

    @property
    def step(self) -> float:
        """The grid of ``value``."""
        return grid_step(self.l2_bound, len(self.value))

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

    Guarantees: every row is clipped, then cut towards zero to the grid, then checked as integers: its squared norm in
    steps is at most (C / step)^2, whatever the floats before did. The addition is exact, in any order.

    | row | contributes |
    |---|---|
    | any NaN or inf, or a squared norm that overflows | exactly zero |
    | norm 0 | zero |
    | norm <= C (1 - 1e-6) | itself, cut to the grid |
    | longer | scaled to C (1 - 1e-6), cut to the grid |
    | no row for a client | that client's sum is zero |

    Raises:
        ParameterError: the bound is not a positive number in an ordinary range.
        MechanismMisuseError: a row belongs to no client in [0, num_groups), or rows and groups differ in number.
    """
    step = grid_step(max_grad_norm, contributions.shape[1])
    if group.shape != (len(contributions),) or (len(group) and not 0 <= group.min() <= group.max() < num_groups):
        raise MechanismMisuseError(
            "A contribution belongs to no client.",
            f"There are {num_groups} clients, numbered from 0, and one number is needed for each contribution.",
            "Number the clients of a node from 0 in a fixed order.",
        )
    rows = contributions.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    usable = np.isfinite(norm)
    rows[~usable] = 0.0
    factor = np.minimum(1.0, max_grad_norm * INSIDE / np.maximum(np.where(usable, norm, 1.0), max_grad_norm / 2))
    steps = np.trunc(rows * (factor / step)[:, None])  # a division by a power of two is exact
    steps[~(np.einsum("nd,nd->n", steps, steps) <= (max_grad_norm / step) ** 2)] = 0.0  # never; the bound rests on it
    sums = np.zeros((num_groups, contributions.shape[1]))
    np.add.at(sums, group, steps)
    return [ClippedSum(total * step, max_grad_norm) for total in sums]
