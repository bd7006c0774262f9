"""What is differentiated: the losses of an objective with respect to a written list of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from privacy.gradients.errors import ObjectiveError, UnusedParameterError
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

    def differentiate(
        self, losses: Tensor, weights: Tensor | None = None, *, keep_graph: bool = False
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the weighted sum of the losses with respect to the tensors, None where there is none.

        ``.grad`` of no tensor is touched, and gradients of tensors that are not listed are not formed.
        """
        total = losses.sum() if weights is None else (weights * losses).sum()
        return torch.autograd.grad(total, self.parameters, retain_graph=keep_graph, allow_unused=True)


def unused(names: Sequence[str]) -> UnusedParameterError:
    """The error for listed tensors whose gradient would be zeros because nothing used them."""
    return UnusedParameterError(
        f"{', '.join(names[:3])}{' and others' * (len(names) > 3)} took no part in the loss.",
        "The adapter is merged, disabled or not the active one, the objective goes around it, or it runs inside re-entrant "
        "gradient checkpointing.",
        'Activate the adapter, checkpoint with {"use_reentrant": False}, or take the tensors off the list.',
    )
