"""The definition of a per-unit gradient: one ordinary backward pass for each unit. Slow, exact, for any tensor."""

from __future__ import annotations

from privacy.gradients.errors import IndivisibleBatchError
from privacy.gradients.objective import Task, unused
from privacy.gradients.result import UnitGradients
from privacy.gradients.rows import UnitBatch


def add_by_loop(task: Task, batch: UnitBatch, into: UnitGradients) -> None:
    """Add every unit's gradient, computed on that unit's records alone.

    Raises:
        IndivisibleBatchError: the batch has no ``select``.
        UnusedParameterError: no unit's loss depends on a listed tensor.
    """
    select = getattr(batch, "select", None)
    if select is None:
        raise IndivisibleBatchError(
            "This batch cannot be cut into privacy units.",
            "Some trainable tensors are no linear layers; their gradients are formed unit by unit.",
            "Give the batch a method select(records) that returns the records where the mask is true.",
        )
    idle = set(task.trainable)
    for unit in batch.row_unit.unique().tolist():
        alone = select(batch.row_unit == unit)
        losses = task.losses(alone)
        if not losses.requires_grad:
            continue
        for name, gradient in zip(task.trainable, task.differentiate(losses), strict=True):
            if gradient is not None:
                idle.discard(name)
                into[name][unit] += gradient
    if idle:
        raise unused([name for name in task.trainable if name in idle])
