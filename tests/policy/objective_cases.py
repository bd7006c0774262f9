"""Every objective on the same few records, with a model of its own and random adapters; slow definitions beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from policy.adapter import attach_lora
from policy.batches import CompletionBatch, GroupBatch, UnpairedBatch
from policy.dpo_losses import LOSSES
from policy.objectives import DpoObjective, GrpoObjective, KtoObjective, SftObjective
from policy.settings import LoraSettings
from reward.backbone import load_backbone
from reward.batches import PairBatch, SelectorBatch, TokenBatch
from reward.model import attach_score_adapter, load_score_backbone
from reward.objectives import BradleyTerryObjective, SelectorObjective
from reward.tokens import Layout, PaddingSide, TokenRecord, collate

LAYOUTS: tuple[tuple[Layout, PaddingSide], ...] = (
    ("shared", "right"),
    ("shared", "left"),
    ("separate", "right"),
    ("separate", "left"),
)
N = 6


def records(num_answers: int) -> list[TokenRecord]:
    """N records of unequal lengths: one prompt and one answer of a single token, one empty answer, two equal answers."""
    generator = torch.Generator().manual_seed(7)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 250, (count,), generator=generator).tolist())

    made = [
        TokenRecord(tokens(3 + i), tuple(tokens(2 + (i * (a + 2)) % 5) for a in range(num_answers))) for i in range(N)
    ]
    made[1] = TokenRecord(tokens(1), tuple(tokens(1 + a) for a in range(num_answers)))
    if num_answers > 1:
        made[2] = TokenRecord(made[2].prompt_ids, ((), *made[2].answer_ids[1:]))
        made[3] = TokenRecord(made[3].prompt_ids, (made[3].answer_ids[0],) * num_answers)
    return made


def random(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _given(num_answers: int, layout: Layout, side: PaddingSide) -> dict[str, Any]:
    rows = collate(records(num_answers), num_answers=num_answers, layout=layout, padding_side=side)
    return {"rows": rows, "row_unit": torch.arange(N), "weight": random(N, seed=1).abs()}


def pairs(layout: Layout = "shared", side: PaddingSide = "right") -> PairBatch:
    return PairBatch(
        **_given(2, layout, side),
        ref_logps=3 * random(N, 2) - 20,
        margin=random(N, seed=2).abs(),
        tie=torch.arange(N) == 4,
    )


def unpaired(layout: Layout = "shared", side: PaddingSide = "right") -> UnpairedBatch:
    return UnpairedBatch(
        **_given(1, layout, side), label=torch.arange(N) % 3 > 0, ref_logps=2 * random(N) - 15, reference_point=0.7
    )


def completions(layout: Layout = "shared", side: PaddingSide = "right") -> CompletionBatch:
    return CompletionBatch(**_given(1, layout, side))


def choices(layout: Layout = "shared", side: PaddingSide = "right") -> SelectorBatch:
    asked = [TokenRecord(r.prompt_ids, ((),)) for r in records(1)]
    rows = collate(asked, num_answers=1, layout=layout, padding_side=side)
    return SelectorBatch(rows=rows, row_unit=torch.arange(N), label=torch.arange(N) % 2, choice_ids=(40, 41))


def groups(layout: Layout = "shared", side: PaddingSide = "right") -> GroupBatch:
    return GroupBatch(
        **_given(3, layout, side), advantages=random(N, 3), ref_token_logps=random(N, 3, 10, seed=3) / 4 - 5.5
    )


def groups_sampled_before(layout: Layout = "shared", side: PaddingSide = "right") -> GroupBatch:
    return replace(groups(layout, side), old_token_logps=random(N, 3, 10, seed=4) / 4 - 5.5)


@dataclass(frozen=True)
class Case:
    """An objective, its batch by layout and padding side, and whether its model has a score."""

    objective: Callable[[Any, Any], Tensor]
    batch: Callable[[Layout, PaddingSide], TokenBatch]
    score: bool = False


CASES: dict[str, Case] = {
    "bradley_terry": Case(BradleyTerryObjective(center_rewards_coefficient=0.1), pairs, score=True),
    "bradley_terry smoothed": Case(BradleyTerryObjective(label_smoothing=0.2), pairs, score=True),
    "bradley_terry debiased": Case(BradleyTerryObjective(flip_probability=0.2), pairs, score=True),
    "binary_selector": Case(SelectorObjective(), choices),
    "kto": Case(KtoObjective(desirable_weight=1.5, undesirable_weight=0.5), unpaired),
    "sft": Case(SftObjective(), completions),
    "sft sum": Case(SftObjective("sum"), completions),
    "grpo": Case(GrpoObjective("grpo", 8, beta=0.1), groups),
    "grpo clipped": Case(GrpoObjective("grpo", 8, beta=0.1), groups_sampled_before),
    "dr_grpo": Case(GrpoObjective("dr_grpo", 8, temperature=0.7), groups),
    **{name: Case(DpoObjective(name, label_smoothing=0.1), pairs) for name in LOSSES},
}


def model_for(folder: Path, *, score: bool = False, dtype: torch.dtype = torch.float64) -> Any:
    """The tiny model with LoRA on queries and values, both matrices (and the score) random, in evaluation mode."""
    name = str(dtype).removeprefix("torch.")
    if score:
        config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"])
        model = attach_score_adapter(load_score_backbone(str(folder), dtype=name), config, seed=1)
    else:
        settings = LoraSettings(lora_r=3, lora_alpha=6, lora_target_modules=("q_proj", "v_proj"))
        model = attach_lora(load_backbone(str(folder), dtype=name), settings, seed=1)
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = (parameter + 0.2 * torch.randn_like(parameter)).to(dtype).detach()
    return model.eval()


def trained(model: Any) -> list[str]:
    """Names of the trainable tensors."""
    return [name for name, p in model.named_parameters() if p.requires_grad]
