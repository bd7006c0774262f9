"""Which privacy unit every row given to the model belongs to: the contract between a batch and the engine.

A batch has *records* (what an objective returns one loss for) and *model rows* (the first dimension of what the model is
called on). ``row_unit`` names the unit of every record. If the model sees one row per record in that order, also in
several calls (a reward head on chosen, then on rejected features), that is all. If it sees other rows, as in
``[chosen...; rejected...]`` of 2n rows or G completions of a prompt, the batch says whose they are in ``model_row_unit``;
nothing is guessed, for a wrong guess mixes people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from privacy.gradients.errors import RowMapError


class UnitBatch(Protocol):
    """What every batch carries: the privacy unit of every record, int64 [n]."""

    @property
    def row_unit(self) -> Tensor:
        """Values in [0, num_units)."""


class ModelRowBatch(UnitBatch, Protocol):
    """A batch whose model rows are not its records, for example ``torch.cat([unit, unit])`` for [chosen; rejected]."""

    @property
    def model_row_unit(self) -> Tensor:
        """The unit of every row of the model's inputs, int64 [rows]."""


class DivisibleBatch(UnitBatch, Protocol):
    """A batch that can be cut; needed by the exact loop only."""

    def select(self, records: Tensor) -> Any:
        """The batch of the records where ``records`` (bool [n]) is true, with all their model rows."""


@dataclass(frozen=True)
class RowMap:
    """The unit of every model row, int64 [rows], checked.

    ``blocks`` k > 0 says that the rows are k runs of all units in order (k = 2 for pairs as [chosen; rejected] with the
    pair as unit): then products are added in place, without a copy per row.
    """

    unit: Tensor
    num_units: int
    blocks: int

    @classmethod
    def of(cls, batch: UnitBatch, num_units: int) -> RowMap:
        """Read the batch's map.

        Raises:
            RowMapError: not a vector of whole numbers in [0, num_units).
        """
        records = batch.row_unit
        unit: Tensor = getattr(batch, "model_row_unit", records)
        for values in (records,) if unit is records else (records, unit):
            _check(values, num_units)
        if len(records) and not len(unit):
            raise wrong_rows("The model")
        return cls(unit, num_units, _blocks(unit, num_units))

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """into[u] += sum over rows r of unit u, and their positions, of outer(left[r], right[r]).

        Shapes: ``into`` [units, o, i] fp32 or fp64, ``left`` [rows, ..., o], ``right`` [rows, ..., i] of any float type;
        they are raised to ``into``'s type before the product, so that a bf16 model is summed in fp32.
        """
        left, right = _positions(left.to(into.dtype)), _positions(right.to(into.dtype))
        if left.shape[1:] == (1, 1):  # a scalar head on vectors: the product is elementwise
            into.index_add_(0, self.unit, left * right)
        elif self.blocks:
            step = self.num_units
            for start in range(0, len(left), step):
                into.baddbmm_(left[start : start + step].mT, right[start : start + step])
        else:
            into.index_add_(0, self.unit, torch.bmm(left.mT, right))

    def add(self, into: Tensor, values: Tensor) -> None:
        """into[u] += sum over rows r of unit u, and their positions, of values[r]; the gradient of a bias."""
        into.index_add_(0, self.unit, _positions(values.to(into.dtype)).sum(dim=1))


def wrong_rows(layer: str) -> RowMapError:
    """A layer was called on other rows than the batch announces."""
    return RowMapError(
        f"{layer} was called on another number of rows than the batch names units for.",
        "The first dimension of its input is not the batch's rows: answers stacked below each other, or tokens flattened.",
        "Give the batch `model_row_unit`, the unit of every row; train no layer that sees flattened tokens.",
    )


def _check(unit: Tensor, num_units: int) -> None:
    if unit.dim() == 1 and not unit.is_floating_point() and unit.dtype != torch.bool:
        if not len(unit):
            return
        low, high = torch.aminmax(unit)
        if int(low) >= 0 and int(high) < num_units:
            return
    raise RowMapError(
        "The batch does not name the unit of every row.",
        "`row_unit` and `model_row_unit` are vectors of whole numbers from 0 to below the number of units.",
        "Number the units of the round from 0 in the collator.",
    )


def _blocks(unit: Tensor, num_units: int) -> int:
    rows = len(unit)
    if not num_units or not rows or rows % num_units:
        return 0
    in_order = torch.arange(num_units, device=unit.device)
    blocks = rows // num_units
    return blocks if bool((unit.view(blocks, num_units) == in_order).all()) else 0


def _positions(values: Tensor) -> Tensor:
    """[rows, ..., width] -> [rows, positions, width]."""
    return values if values.dim() == 3 else values.reshape(len(values), -1, values.shape[-1])
