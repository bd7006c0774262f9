"""Objectives of reward models on tokens: ``(model, batch) -> loss per record``, pure, none couples records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reward.batches import PairBatch
from reward.losses import preference_loss
from reward.model import answer_scores


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
    """

    label_smoothing: float = 0.0
    flip_probability: float = 0.0
    center_rewards_coefficient: float = 0.0

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
