"""Linear layers whose backward pass adds up gradients per privacy unit instead of over the whole batch.

For y = x W^T + b the gradient of one row is outer(dL/dy, x); summing those products within a unit costs the arithmetic of
the ordinary backward pass ("book-keeping", Bu et al. 2023, arXiv 2210.00038). LoRA's A and B, a frozen-A adapter's B, an
r x r core between them and a score head are all such layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from privacy.errors import CodedError
from privacy.gradients.errors import UncoveredParameterError
from privacy.gradients.objective import unused
from privacy.gradients.result import UnitGradients
from privacy.gradients.rows import RowMap, wrong_rows

Record = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class LinearPart:
    """A layer, and under which names its weight and bias are listed (None: not trained)."""

    path: str
    layer: nn.Linear
    weight: str | None
    bias: str | None


def linear_parts(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> tuple[list[LinearPart], list[str]]:
    """The layers that hold listed tensors, and the listed tensors that are more than weight or bias of linear layers.

    A tensor that two linear layers share is covered: both add to it. One that a linear layer shares with another module
    (tied embeddings) is not, nor one whose layer does not compute ``F.linear``.

    Raises:
        UncoveredParameterError: a listed tensor is nowhere in the model.
    """
    names = {id(parameter): name for name, parameter in trainable.items()}
    parts, placed, others = [], set[str](), set[str]()
    for path, module in model.named_modules():
        held = {key: names[id(p)] for key, p in module._parameters.items() if p is not None and id(p) in names}
        placed.update(held.values())
        if held and isinstance(module, nn.Linear) and _plain(module):
            parts.append(LinearPart(path, module, held.get("weight"), held.get("bias")))
        else:
            others.update(held.values())
    missing = [name for name in trainable if name not in placed]
    if missing:
        raise uncovered(missing, "They belong to another model, or to a layer that was replaced.")
    return parts, [name for name in trainable if name in others]


def uncovered(names: Sequence[str], why: str = "They are more than weight or bias of linear layers.") -> CodedError:
    """The error for tensors whose gradient cannot be formed in one pass."""
    return UncoveredParameterError(
        f"No gradient per privacy unit for {', '.join(names[:3])}{' and others' * (len(names) > 3)}.",
        why,
        "List tensors of the model that the objective is given; UnitGradientEngine also takes others than linear layers.",
    )


def _plain(layer: nn.Linear) -> bool:
    return type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)


@contextmanager
def recording(parts: list[LinearPart], rows: RowMap, into: UnitGradients) -> Iterator[set[str]]:
    """Within the context the layers' backward adds to ``into``; yields the paths of the layers that were called.

    Forward passes without gradient (a reference model behind ``disable_adapter``) are left alone.
    """
    called = set[str]()
    for part in parts:
        part.layer.forward = _forward(part, rows, into, called)  # type: ignore[method-assign,assignment]
    try:
        yield called
    finally:
        for part in parts:
            del part.layer.__dict__["forward"]


def check_called(parts: list[LinearPart], called: set[str]) -> None:
    """Refuse layers that took no part, which would look like zero gradients.

    Raises:
        UnusedParameterError: a layer was never called (a merged adapter, a disabled one, another adapter is active).
    """
    idle = [part.path for part in parts if part.path not in called]
    if idle:
        raise unused(idle)


def _forward(part: LinearPart, rows: RowMap, into: UnitGradients, called: set[str]) -> Callable[[Tensor], Tensor]:
    layer, num_rows = part.layer, len(rows.unit)
    weight = None if part.weight is None else into[part.weight]
    bias = None if part.bias is None else into[part.bias]

    def record(x: Tensor, gy: Tensor) -> None:
        if weight is not None:
            rows.add_outer(weight, gy, x)
        if bias is not None:
            rows.add(bias, gy)

    def forward(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return nn.functional.linear(x, layer.weight, layer.bias)
        if x.dim() < 2 or len(x) != num_rows:
            raise wrong_rows(part.path)
        called.add(part.path)
        return _RecordedLinear.apply(x, layer.weight, layer.bias, record)  # type: ignore[no-any-return,no-untyped-call]

    return forward


class _RecordedLinear(torch.autograd.Function):
    """``F.linear`` that hands its input and its output's gradient to ``record`` and forms no weight gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, record: Record) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.record = record
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gy,) = grad_outputs
        x, weight = ctx.saved_tensors
        ctx.record(x, gy)
        # Under autocast the output is narrower than the weight.
        return ((gy.to(weight.dtype) @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None), None, None, None
