"""Gradients of privacy units, and their clipped sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from privacy.clipping import INSIDE, ClippedSum, clip_and_sum, grid_step
from privacy.gradients.errors import FrozenParameterError, UncoveredParameterError


def select_trainable(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The named tensors of the model, in the order of ``names``.

    PEFT thaws frozen adapter matrices by itself (``disable_adapter``, ``set_adapter``): what is trained is a list of names
    that somebody wrote down (a manifest), never what happens to require a gradient (guarantees.md rule 14).

    Raises:
        UncoveredParameterError: a name is not in the model.
        FrozenParameterError: a named tensor does not require a gradient.
    """
    present = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in names if name not in present]
    if missing:
        raise UncoveredParameterError(
            f"The model has no {', '.join(missing)}.",
            "The names are not this model's.",
            "Compare them with the manifest.",
        )
    trainable = {name: present[name] for name in names}
    check_thawed(trainable)
    return trainable


def check_thawed(trainable: Mapping[str, nn.Parameter]) -> None:
    """Refuse listed tensors that are frozen.

    Raises:
        FrozenParameterError: one of them does not require a gradient.
    """
    frozen = [name for name, parameter in trainable.items() if not parameter.requires_grad]
    if frozen:
        raise FrozenParameterError(
            f"{', '.join(frozen[:3])}{' and others' * (len(frozen) > 3)} would be trained, but requires no gradient.",
            "An adapter was switched off or frozen after the list was made.",
            "Call requires_grad_(True) on it, or take it off the list.",
        )


class UnitGradients:
    """The gradient of every privacy unit, tensor by tensor: name -> [num_units, *shape], fp32 (fp64 for fp64 tensors).

    Memory: ``num_units`` x d x 4 bytes, for as long as a unit may still get rows; a LoRA of rank 8 on the queries and
    values of SmolLM2-135M has d = 460,800, that is 1.8 MB a unit. To bound it, order a user's records so that each
    group of users ends before the next begins, clip group by group, and add the ``ClippedSum``s.
    """

    def __init__(self, trainable: Mapping[str, nn.Parameter], num_units: int) -> None:
        self.num_units = num_units
        self._tensors = {
            name: torch.zeros(num_units, *p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
            for name, p in trainable.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        """The tensor that gradients of ``name`` are added to, [num_units, *shape]."""
        return self._tensors[name]

    def flat(self) -> Tensor:
        """One row per unit, columns in the order of the trainable tensors, [num_units, d]; a copy."""
        return torch.cat([gradient.flatten(1) for gradient in self._tensors.values()], dim=1)

    def norms(self) -> Tensor:
        """The l2 norm of every unit's whole gradient, fp64 [num_units]; NaN or inf where the gradient has some."""
        parts = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in self._tensors.values()]
        total: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return total

    def clip_and_sum(self, max_grad_norm: float, group: Tensor | None = None, num_groups: int = 1) -> list[ClippedSum]:
        """``privacy.clipping.clip_and_sum`` of these gradients, tensor by tensor, without a [num_units, d] copy.

        Args:
            max_grad_norm: the bound C.
            group: the client of every unit, int64 [num_units]; None: all of one.
            num_groups: number of clients.

        Guarantees: every unit is clipped, cut towards zero to the integer grid and checked there, so it enters with norm
        <= C exactly; sums are exact; a unit with NaN or inf anywhere enters as exactly zero and touches nobody else.

        | case | result |
        |---|---|
        | no units | zeros for every group |
        | a unit with a finite gradient of any size, 1e30 included | its direction, at the bound |
        | a unit with NaN, inf, or a norm above the largest double | zero |
        | one unit of norm <= C (1 - 1e-6) | itself, cut to the grid |

        Raises:
            ParameterError: the bound is not a positive finite number.
        """
        empty = np.zeros((0, self.dimension), dtype=np.float64)
        sums = clip_and_sum(empty, np.zeros(0, dtype=np.int64), num_groups, max_grad_norm)  # zeros; checks the bound
        norm = self.norms()
        usable = norm.isfinite()
        safe = norm.where(usable, torch.ones_like(norm)).clamp_min(1e-300)
        step = grid_step(max_grad_norm, self.dimension)
        factor = (max_grad_norm * INSIDE / safe).clamp_max(1.0).where(usable, torch.zeros_like(norm)) / step
        squared = self._add_steps(sums, factor, group)
        outside = ~(squared <= (max_grad_norm / step) ** 2)
        if bool(outside.any()):  # never; the bound rests on it
            for clipped in sums:
                clipped.value[:] = 0.0
            self._add_steps(sums, factor.masked_fill(outside, 0.0), group)
        for clipped in sums:
            clipped.value[:] *= step
        return sums

    def _add_steps(self, sums: list[ClippedSum], factor: Tensor, group: Tensor | None) -> Tensor:
        """Add every unit's gradient times ``factor``, cut towards zero to integers, to its group; squared norms [units]."""
        home = torch.zeros(self.num_units, dtype=torch.int64) if group is None else group
        squared = torch.zeros(self.num_units, dtype=torch.float64, device=factor.device)
        start = 0
        for gradient in self._tensors.values():
            rows = gradient.flatten(1).to(torch.float64, copy=True)
            rows[factor == 0] = 0.0  # zero times NaN is NaN
            rows.mul_(factor[:, None]).trunc_()
            squared += rows.square().sum(1)
            total = torch.zeros(len(sums), rows.shape[1], dtype=torch.float64, device=rows.device)
            total.index_add_(0, home.to(rows.device), rows)
            for i, clipped in enumerate(sums):
                clipped.value[start : start + rows.shape[1]] = total[i].cpu().numpy()
            start += rows.shape[1]
        return squared

    @property
    def dimension(self) -> int:
        """Entries of one unit's gradient, d."""
        return sum(math.prod(gradient.shape[1:]) for gradient in self._tensors.values())
