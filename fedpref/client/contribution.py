"""The seam between a node and what its clients compute: parameters and drawn units in, clipped sums or single rows out.

A node knows coins, books and seals, and nothing of data, models and losses; a ``ClientWork`` knows those, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from privacy.adaptive import QuantileClipping
from privacy.clipping import ClippedSum, clip_and_sum
from privacy.sampling import Mask, Units

if TYPE_CHECKING:
    from privacy.gradients import UnitGradients

Vector = npt.NDArray[np.float64]
Rows = npt.NDArray[np.floating[Any]]
RowsOf = Callable[[int], Iterable[Rows]]  # a client's number -> its drawn units' rows, in blocks [units, d]


@dataclass(frozen=True)
class RoundClipping:
    """How a round bounds contributions: at ``max_grad_norm``, with the count of adaptive clipping where there is one."""

    max_grad_norm: float
    quantile: QuantileClipping | None = None
    norm: float | None = None

    def __call__(self, rows: Rows, group: npt.NDArray[np.integer], num_groups: int) -> list[ClippedSum]:
        """One row per drawn unit, shape [units, d] -> clipped sums per client (``privacy.clipping.clip_and_sum``)."""
        return clip_and_sum(self.with_bits(rows), group, num_groups, self.max_grad_norm)

    def with_bits(self, rows: Rows) -> Rows:
        """The rows as they enter the clipping: under adaptive clipping with the unit's bit, [units, d + 1]; else as given."""
        if self.quantile is None or self.norm is None:
            return rows
        return self.quantile.with_bits(rows, self.norm)

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
    """What the clients of one node contribute in a round, computed from their private data. Holds no book, tosses no coin.

    This is all that trust `central` and `local` need.
    """

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


@runtime_checkable
class RowWork(ClientWork, Protocol):
    """Work whose rows fit into memory all at once: every step of local DP-SGD clips and noises them by itself."""

    def rows(self, parameters: Vector, selected: Mask) -> Rows:
        """One row per selected unit, in the units' order, shape [selected, d]: not yet clipped, and not to leave the node."""


@runtime_checkable
class SecureWork(ClientWork, Protocol):
    """Work that gives single rows client by client, for the codec of secure aggregation (trust `distributed`), which
    clips, sums and rounds them by itself."""

    def rows_by_client(self, parameters: Vector, selected: Mask) -> RowsOf:
        """For every client, when it is asked for: one row per selected unit, not yet clipped, and not to leave the node.

        A client's blocks are read to their end before the next client is asked for: only one block is in memory, and
        what is prepared for one client is forgotten at the next.
        """
