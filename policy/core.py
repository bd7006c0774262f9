"""An r x r core between frozen matrices from the base weights' SVD: W + s B R A, of which R alone is trained.

LoRA-XS (Balazy et al. 2024, arXiv 2405.17604, eq. 3): for W = U S V^T, A = V_r^T and B = U_r S_r. The update is linear in R,
so that means of cores are cores of means (Fed-SB, Singhal et al. 2025). B R is an ordinary LoRA's B: so it is released.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from policy.adapter import ADAPTER


class CoreB(nn.Module):
    """Stands where PEFT has its B: x -> B R x, R [r, r] trained, starting at zero."""

    outer: Tensor

    def __init__(self, outer: Tensor) -> None:
        super().__init__()
        rank = outer.shape[1]
        self.core = nn.Linear(rank, rank, bias=False, device=outer.device, dtype=outer.dtype)
        nn.init.zeros_(self.core.weight)
        self.register_buffer("outer", outer)

    def forward(self, x: Tensor) -> Tensor:
        """[..., r] -> [..., o]."""
        return nn.functional.linear(self.core(x), self.outer)

    @property
    def weight(self) -> Tensor:
        """B R, [o, r]: what an ordinary adapter's B would be."""
        return self.outer @ self.core.weight


def install_cores(model: nn.Module) -> None:
    """Replace A and B of every LoRA layer of the adapter by the SVD's frozen matrices with a core between them.

    Singular vectors are only given up to a sign: the entry of u largest in size is made positive, so that nodes agree.
    A rank above that of W leaves the last rows and columns zero.
    """
    for layer in _lora_layers(model):
        weight, rank = layer.get_base_layer().weight.detach().float(), layer.r[ADAPTER]
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
        sign = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True))[0])
        inner, outer = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        a, b = torch.zeros_like(inner), torch.zeros_like(outer)
        a[: len(s)], b[:, : len(s)] = sign[:, None] * vt, u * (sign * s)
        inner.data.copy_(a)
        layer.lora_B[ADAPTER] = CoreB(b)


@contextmanager
def fold_cores(model: nn.Module) -> Iterator[None]:
    """Within the context the adapter is an ordinary LoRA: B R in the place of B and core."""
    folded: list[tuple[Any, CoreB]] = []
    for layer in _lora_layers(model):
        core = layer.lora_B[ADAPTER]
        if isinstance(core, CoreB):
            plain = nn.Linear(core.outer.shape[1], core.outer.shape[0], bias=False)
            plain.weight = nn.Parameter(core.weight.detach().clone(), requires_grad=False)
            layer.lora_B[ADAPTER] = plain
            folded.append((layer, core))
    try:
        yield
    finally:
        for layer, core in folded:
            layer.lora_B[ADAPTER] = core


def _lora_layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if ADAPTER in getattr(m, "lora_A", {}) and hasattr(m, "get_base_layer")]
