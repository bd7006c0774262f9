"""The seam between a node and what its clients compute: parameters and drawn units in, one clipped sum per client out.

A node knows coins, books and seals, and nothing of data, models and losses; a ``ClientWork`` knows those, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from privacy.adaptive import QuantileClipping
from privacy.clipping import ClippedSum, clip_and_sum
from privacy.sampling import Mask, Units

if TYPE_CHECKING:
    from privacy.gradients import UnitGradients

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RoundClipping:
    """How a round bounds contributions: at ``max_grad_norm``, with the count of adaptive clipping where there is one."""

    max_grad_norm: float
    quantile: QuantileClipping | None = None
    norm: float | None = None

    def __call__(
        self, rows: npt.NDArray[np.floating], group: npt.NDArray[np.integer], num_groups: int
    ) -> list[ClippedSum]:
        """One row per drawn unit, shape [units, d] -> clipped sums per client (``privacy.clipping.clip_and_sum``)."""
        if self.quantile is not None and self.norm is not None:
            rows = self.quantile.with_bits(rows, self.norm)
        return clip_and_sum(rows, group, num_groups, self.max_grad_norm)

    def of(self, gradients: UnitGradients, group: npt.NDArray[np.integer], num_groups: int) -> list[ClippedSum]:
        """The same of per-unit gradients, without a copy of them where the norm is fixed."""
        import torch

        if self.quantile is not None:
            return self(gradients.flat().cpu().numpy(), group, num_groups)
        return gradients.clip_and_sum(self.max_grad_norm, torch.from_numpy(group), num_groups)

    def zeros(self, dimension: int) -> ClippedSum:
        """What a client without a drawn unit contributes."""
        return ClippedSum(np.zeros(dimension + (self.quantile is not None)), self.max_grad_norm)


class ClientWork(Protocol):
    """What the clients of one node contribute in a round, computed from their private data. Holds no book, tosses no coin."""

    @property
    def units(self) -> Units:
        """What sampling may look at: the client and the place of every privacy unit of the node."""

    def clipped_sums(self, parameters: Vector, selected: Mask, clipping: RoundClipping) -> Iterable[ClippedSum]:
        """Every client's sum over its selected units, in the clients' order; a client without one gets zeros.

        Args:
            parameters: as broadcast, flat fp64 [d], in the manifest's order.
            selected: the units whose coins said so, bool [units].
            clipping: of this round. Each selected unit enters clipped, once, whatever its records are.
        """

    def rows(self, parameters: Vector, selected: Mask) -> Iterable[npt.NDArray[np.floating]]:
        """Every client's contributions before clipping, in the clients' order: one row per selected unit, [units, d].

        For mechanisms that clip, round and mask inside the client (secure aggregation); arguments as in ``clipped_sums``.
        """
