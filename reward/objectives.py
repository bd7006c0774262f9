"""Objectives of reward models on tokens: ``(model, batch) -> loss per record``, pure, none couples records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reward.batches import PairBatch, SelectorBatch
from reward.losses import check_label_noise, preference_loss, selector_loss
from reward.model import answer_scores
from reward.trunk import hidden_states, output_head


@dataclass(frozen=True)
class BradleyTerryObjective:
    """Bradley-Terry of a LoRA reward model (``reward.model``), with the batch's margins and ties.

    Attributes:
        label_smoothing: in [0, 1/2); see ``preference_loss``.
        flip_probability: of labels under randomised response; the loss is unbiased for the true ones.
        center_rewards_coefficient: TRL's penalty on (r_chosen + r_rejected)^2, which fixes the free constant.

    | case | result |
    |---|---|
    | no records | shape [0] |
    | an answer without tokens | scored at the prompt's last token |
    | chosen and rejected are the same text | log 2, without a gradient |
    | NaN in a record | NaN in its loss only |

    Raises:
        ValueError: when made, with a probability that ``preference_loss`` does not take.
    """

    label_smoothing: float = 0.0
    flip_probability: float = 0.0
    center_rewards_coefficient: float = 0.0

    def __post_init__(self) -> None:
        check_label_noise(self.label_smoothing, self.flip_probability)

    def __call__(self, model: Any, batch: PairBatch) -> Tensor:
        """Loss of every pair, [n], fp32."""
        scores = answer_scores(model, batch.rows)
        losses = preference_loss(
            scores[:, 0],
            scores[:, 1],
            margin=batch.margin,
            tie=batch.tie,
            label_smoothing=self.label_smoothing,
            flip_probability=self.flip_probability,
        )
        if self.center_rewards_coefficient:
            losses = losses + self.center_rewards_coefficient * scores.sum(1) ** 2
        return batch.weighted(losses)


@dataclass(frozen=True)
class SelectorObjective:
    """A binary selector (FedBis): the language model, asked which of two answers is better, names one of two tokens.

    | case | result |
    |---|---|
    | no records | shape [0] |
    | both answers are the same text | that of an arbitrary letter, fixed by the text |
    | NaN in a record | NaN in its loss only |
    """

    def __call__(self, model: Any, batch: SelectorBatch) -> Tensor:
        """Loss of every question, [n], fp32."""
        return batch.weighted(selector_loss(choice_logits(model, batch), batch.label))


def choice_logits(model: Any, batch: SelectorBatch) -> Tensor:
    """Logits of the two choices behind every prompt, [n, 2], fp32 or wider; a frozen head is applied to these two only."""
    hidden = hidden_states(model, batch.rows)
    last = hidden[torch.arange(len(hidden), device=hidden.device), batch.rows.prompt_end]
    head, choices = output_head(model), torch.tensor(batch.choice_ids, device=last.device)
    if type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
        bias = None if head.bias is None else head.bias[choices]
        logits = functional.linear(last, head.weight[choices], bias)
    else:  # trained or adapted: its rows are not all there is to it, and gradients per unit need its call
        logits = head(last)[:, choices]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
