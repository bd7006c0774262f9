"""Do the units of a batch leave one another alone? Clipping per unit bounds nothing where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from privacy.gradients.errors import RecordsInteractError
from privacy.gradients.objective import Task
from privacy.gradients.rows import RowMap, UnitBatch


def check_units_independent(task: Task, batch: UnitBatch, num_units: int) -> None:
    """Show on one batch that no unit's loss depends on another unit's rows.

    1. By gradients: the losses of half of the units are weighted by zero and differentiated; wherever a linear layer of the
       model saw a row of such a unit, the gradient there must be zero. Halving by every bit of the unit's number, both
       ways, separates every pair of units: 2 ceil(log2 units) backward passes over one forward pass. Finds losses that
       couple records (sorting, whitening), batch normalisation, and a wrong row map.
    2. By values, if the batch has ``select``: a unit's losses alone, in evaluation mode, must be what they are in the batch,
       to 5 % of 1 + |loss| (fp64: 1e-6). Finds what has no gradient: advantages or normalisers from others' records.

    A coupling fainter than that stays unseen; an objective's own tests must show that there is none.

    Raises:
        RecordsInteractError: a unit's loss moved another unit's row.
    """
    present = batch.row_unit.unique()
    if len(present) < 2:
        return
    _check_values(task, batch, present)
    _check_gradients(task, batch, RowMap.of(batch, num_units))


def _check_gradients(task: Task, batch: UnitBatch, rows: RowMap) -> None:
    touched = torch.zeros_like(rows.unit, dtype=torch.bool)
    with _tapped(task.model, touched):
        losses = task.losses(batch)
        if not losses.requires_grad:  # nothing takes part, which is another error's business
            return
        for bit in range(int(rows.unit.max()).bit_length()):
            for loud in (0, 1):
                touched.zero_()
                weights = ((batch.row_unit >> bit) % 2 == loud).to(losses.dtype)
                task.differentiate(losses, weights, keep_graph=True)
                if bool(touched[(rows.unit >> bit) % 2 != loud].any()):
                    raise _interact()


@torch.no_grad()
def _check_values(task: Task, batch: UnitBatch, present: Tensor) -> None:
    select = getattr(batch, "select", None)
    if select is None:
        return
    with _evaluating(task.model):
        together = task.losses(batch)
        tolerance = 1e-6 if together.dtype == torch.float64 else 5e-2
        for unit in present.tolist():
            mine = batch.row_unit == unit
            alone, among = task.losses(select(mine)), together[mine]
            if bool(((alone - among).abs() > tolerance * (1 + alone.abs())).any()):  # NaN compares as False
                raise _interact()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, whose masks differ from call to call."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _tapped(model: nn.Module, touched: Tensor) -> Iterator[None]:
    """Marks in ``touched`` the rows where the output of any linear layer has a gradient other than zero."""

    def mark(gradient: Tensor) -> None:
        values = gradient.reshape(len(touched), -1)
        touched.logical_or_(
            ((values != 0) & values.isfinite()).any(dim=1)
        )  # NaN spreads by arithmetic, not by coupling

    def tap(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad and output.dim() > 1 and len(output) == len(touched):
            output.register_hook(mark)

    hooks = [layer.register_forward_hook(tap) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _interact() -> RecordsInteractError:
    return RecordsInteractError(
        "The loss of one privacy unit depends on the rows of another.",
        "The objective couples records (also by constants such as advantages), a layer normalises over the batch, or "
        "`model_row_unit` names the wrong units.",
        "Use a loss that is a sum over records (see the list of refused losses), and check the order of the model's rows.",
    )
