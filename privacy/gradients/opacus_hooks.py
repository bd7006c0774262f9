"""Opacus 1.6 as a second way to the same gradients: hooks on the unchanged model, rows summed into units before any norm.

Opacus' sample is a row of the model's input. Its own clipping is not used: one pair has two rows, and clipping rows lets
it contribute up to twice the bound. ``loss_reduction="sum"``, because the default would scale every gradient by the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from privacy.gradients.errors import GradientBackendError
from privacy.gradients.linear import LinearPart
from privacy.gradients.objective import Task
from privacy.gradients.result import UnitGradients
from privacy.gradients.rows import RowMap, UnitBatch


def add_by_opacus(task: Task, parts: list[LinearPart], batch: UnitBatch, into: UnitGradients) -> None:
    """Add every unit's gradient of one batch.

    Raises:
        GradientBackendError: Opacus is not installed, or its hooks gave no gradient (gradient checkpointing, a layer
            that ran twice or not at all).
    """
    rows = RowMap.of(batch, into.num_units)
    with ExitStack() as stack:
        stack.enter_context(_only(task.model, task.trainable))
        stack.enter_context(_hooks(task.model, parts))
        task.losses(batch).sum().backward()
        for name, parameter in task.trainable.items():
            per_row = parameter.grad_sample  # type: ignore[attr-defined]
            if not isinstance(per_row, Tensor) or len(per_row) != len(rows.unit):
                raise GradientBackendError(
                    f"Opacus has no gradient per row for {name}.",
                    "Its hooks do not work under gradient checkpointing, nor after a forward pass without a backward one.",
                    'Use the backend "book_keeping".',
                )
            into[name].index_add_(0, rows.unit, per_row.to(into[name].dtype))


@contextmanager
def _only(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Freezes all tensors that are not listed, for Opacus follows ``requires_grad``; keeps every ``.grad``."""
    listed = {id(p) for p in trainable.values()}
    thawed = [p for p in model.parameters() if p.requires_grad and id(p) not in listed]
    kept = [(p, p.grad) for p in trainable.values()]
    for p in thawed:
        p.requires_grad_(False)
    for p, _ in kept:
        p.grad = None
    try:
        yield
    finally:
        for p in thawed:
            p.requires_grad_(True)
        for p, gradient in kept:
            p.grad = gradient


@contextmanager
def _hooks(model: nn.Module, parts: list[LinearPart]) -> Iterator[None]:
    """Opacus' hooks, which work on layers in training mode only; a linear layer behaves alike in both modes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.grad_sample import GradSampleHooks
    except ImportError:
        raise GradientBackendError(
            "The backend `opacus` needs Opacus.", "It is not installed.", 'pip install "opacus>=1.6,<2"'
        ) from None
    modes = [(part.layer, part.layer.training) for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # full backward hooks warn about inputs without gradient
        for layer, _ in modes:
            layer.training = True
        hooks = GradSampleHooks(model, strict=False, loss_reduction="sum")
        try:
            yield
        finally:
            hooks.cleanup()
            for layer, mode in modes:
                layer.training = mode
                layer.__dict__.pop("activations", None)
                layer.__dict__.pop("max_batch_len", None)
