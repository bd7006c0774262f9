"""One backward pass -> one gradient per privacy unit, for any objective ``(model, batch) -> loss per record``.

For a linear layer y = x W^T the gradient of one row is outer(dL/dy, x); summing those outer products within a unit,
instead of over the whole batch, gives the unit's gradient at the price of the ordinary backward pass ("book-keeping", Bu
et al. 2023, arXiv 2210.00038). All rows of a unit (both answers of a pair, all pairs of a user) are summed before any
norm is taken, so that clipping bounds the unit and not a row (guarantees.md rules 1 and 2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from privacy.errors import CodedError


class UncoveredParameterError(CodedError):
    """A trainable tensor whose per-unit gradient this version cannot form."""

    code = "FP440"


class UnitBatch(Protocol):
    """What an objective's batch must carry: the privacy unit of every row given to the model, int64 [rows]."""

    @property
    def row_unit(self) -> Tensor:
        """Values in [0, num_units)."""


def per_unit_gradients(
    model: nn.Module,
    objective: Callable[[Any, Any], Tensor],
    batch: UnitBatch,
    num_units: int,
    trainable: Mapping[str, nn.Parameter],
) -> Tensor:
    """The gradient of every unit's summed loss, flat fp32, shape [num_units, d].

    Args:
        model: called by the objective on one row per entry of ``batch.row_unit``, in that order, any number of times.
        objective: returns the loss of every record, shape [n]; records must not interact.
        batch: its ``row_unit`` names the unit of each row.
        num_units: rows of the result; a unit without rows gets zeros.
        trainable: name -> parameter, in the order of the result's columns; each is the weight of an ``nn.Linear``.

    Guarantees: equal to a loop of single-unit backward passes (fp64 to 1e-12, fp32 to 1e-6); rows of different units
    never mix; the parameters' own ``.grad`` is left alone.

    | case | result |
    |---|---|
    | no rows | zeros; the model does not run |
    | a row with NaN or inf | non-finite entries in its unit only (clipping drops that unit) |
    | a trainable tensor that is no weight of an ``nn.Linear``, or that a second module shares | UncoveredParameterError |
    """
    layers = _linear_layers(model, trainable)
    row_unit = batch.row_unit
    sums = {
        name: torch.zeros(
            num_units,
            *parameter.shape,
            dtype=torch.promote_types(parameter.dtype, torch.float32),
            device=parameter.device,
        )
        for name, parameter in trainable.items()
    }
    if len(row_unit):
        with _recording(layers, row_unit, sums):
            objective(model, batch).sum().backward()
    return torch.cat([gradient.flatten(1) for gradient in sums.values()], dim=1)


def _linear_layers(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> dict[str, nn.Linear]:
    by_weight = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Linear)}
    places = Counter(
        id(p) for m in model.modules() for _, p in m.named_parameters(recurse=False, remove_duplicate=False)
    )
    uncovered = [name for name, p in trainable.items() if id(p) not in by_weight or places[id(p)] > 1]
    if uncovered:
        raise UncoveredParameterError(
            f"No per-unit gradient for {', '.join(uncovered)}.",
            "This version forms them for weights of linear layers, each in one module only.",
            "Freeze these tensors, or train a linear head.",
        )
    return {name: by_weight[id(parameter)] for name, parameter in trainable.items()}


@contextmanager
def _recording(layers: Mapping[str, nn.Linear], row_unit: Tensor, sums: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context the layers' backward adds to ``sums`` instead of building ``weight.grad``."""

    def recorder(layer: nn.Linear, into: Tensor) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            return _PerUnitLinear.apply(x, layer.weight, layer.bias, row_unit, into)  # type: ignore[no-any-return,no-untyped-call]

        return forward

    for name, layer in layers.items():
        layer.forward = recorder(layer, sums[name])  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.__dict__["forward"]


class _PerUnitLinear(torch.autograd.Function):
    """``F.linear`` whose backward adds outer products per unit."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, row_unit: Tensor, into: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.row_unit, ctx.into = row_unit, into
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gy,) = grad_outputs
        x, weight = ctx.saved_tensors
        rows_y, rows_x = _as_rows(gy), _as_rows(x)
        # For a scalar head on vectors the product is elementwise.
        outer = rows_y * rows_x if rows_y.shape[1:] == (1, 1) else torch.bmm(rows_y.mT, rows_x)
        ctx.into.index_add_(0, ctx.row_unit, outer.to(ctx.into.dtype))
        return (gy @ weight if ctx.needs_input_grad[0] else None), None, None, None, None


def _as_rows(values: Tensor) -> Tensor:
    """[rows, ..., width] -> [rows, positions, width]."""
    return values.reshape(len(values), -1, values.shape[-1])
