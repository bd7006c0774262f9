"""Losses of preference records: pure, one loss per record, none couples records."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bradley_terry(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected), shape [n] from [n] and [n] (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1).

    TRL's ``RewardTrainer`` takes the mean of the same loss.
    """
    return -functional.logsigmoid(chosen_scores - rejected_scores)
