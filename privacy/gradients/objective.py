"""What is differentiated: the losses of an objective with respect to a written list of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from privacy.gradients.errors import ObjectiveError
from privacy.gradients.rows import UnitBatch

Objective = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Task:
    """A model, an objective ``(model, batch) -> loss per record`` [n], and the trainable tensors by name."""

    model: nn.Module
    objective: Objective
    trainable: Mapping[str, nn.Parameter]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors in order."""
        return list(self.trainable.values())

    def losses(self, batch: UnitBatch) -> Tensor:
        """One loss per record, [n].

        Raises:
            ObjectiveError: another shape. A scalar (a mean) would scale every gradient by the number of records.
        """
        losses = self.objective(self.model, batch)
        if losses.shape != batch.row_unit.shape:
            raise ObjectiveError(
                "The objective does not return one loss per record.",
                f"It returns {losses.dim()} dimensions, or another number of losses than `row_unit` has records.",
                "Return the losses unreduced, shape [n].",
            )
        return losses
