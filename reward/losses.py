"""Losses of preference records: pure, one loss per record, none couples records."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def bradley_terry(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected), shape [n] from [n] and [n] (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1).

    TRL's ``RewardTrainer`` takes the mean of the same loss.
    """
    return -functional.logsigmoid(chosen_scores - rejected_scores)


def debiased_logistic(margins: Tensor, flip_probability: float) -> Tensor:
    """((1 - p) l(m) - p l(-m)) / (1 - 2 p) with l(m) = -log sigmoid(m), shape [n].

    If labels were flipped with probability p, its expectation over the flips is l of the true label: (1 - p) times the
    loss of an unflipped pair plus p times that of a flipped one leaves l(m) (Natarajan et al. 2013, lemma 1). It is
    TRL's ``loss_type: robust`` with ``label_smoothing`` p (Chowdhury, Kini and Natarajan 2024, eq. 13), for the margin
    of Bradley-Terry, r_chosen - r_rejected, as for that of DPO, beta times the difference of log ratios. It is
    unbounded below where the margin contradicts a label; per-unit clipping bounds what a unit can do with that.

    | case | result |
    |---|---|
    | p = 0 | l(m) |
    | p outside [0, 1/2) | ValueError: at 1/2 a label says nothing |
    """
    if not 0.0 <= flip_probability < 0.5:
        raise ValueError(f"flip_probability={flip_probability} is not in [0, 1/2)")
    kept, flipped = -functional.logsigmoid(margins), -functional.logsigmoid(-margins)
    return ((1.0 - flip_probability) * kept - flip_probability * flipped) / (1.0 - 2.0 * flip_probability)


def debiased_bradley_terry(chosen_scores: Tensor, rejected_scores: Tensor, flip_probability: float) -> Tensor:
    """Bradley-Terry under labels flipped with a known probability, unbiased for the true labels, shape [n]."""
    return debiased_logistic(chosen_scores - rejected_scores, flip_probability)


def preference_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    margin: Tensor | None = None,
    tie: Tensor | None = None,
    label_smoothing: float = 0.0,
    flip_probability: float = 0.0,
) -> Tensor:
    """Bradley-Terry with margins, ties, smoothed labels or flipped labels, shape [n].

    With d = r_chosen - r_rejected - margin (Touvron et al. 2023, eq. 2; TRL's column ``margin``) and l(d) = -log sigmoid(d):

    | record | loss |
    |---|---|
    | preferred | (1 - s) l(d) + s l(-d), with s = label_smoothing (conservative labels, Mitchell 2023) |
    | preferred, labels flipped with probability p | (Natarajan et al. 2013) ((1 - p) l(d) - p l(-d)) / (1 - 2 p) |
    | tie | (l(r_chosen - r_rejected) + l(r_rejected - r_chosen)) / 2: half of a vote for either; least at equal scores |
    | NaN or inf score | in its own loss only |

    Raises:
        ValueError: a probability outside of [0, 1/2), or both of them above 0.
    """
    check_label_noise(label_smoothing, flip_probability)
    margins = chosen_scores - rejected_scores
    decided = margins if margin is None else margins - margin
    losses = debiased_logistic(decided, flip_probability)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * functional.logsigmoid(-decided)
    if tie is None:
        return losses
    split = -0.5 * (functional.logsigmoid(margins) + functional.logsigmoid(-margins))
    return torch.where(tie, split, losses)


def check_label_noise(label_smoothing: float, flip_probability: float) -> None:
    """Refuse probabilities that ``preference_loss`` does not take.

    Raises:
        ValueError: see there.
    """
    if not 0.0 <= flip_probability < 0.5:
        raise ValueError(f"flip_probability={flip_probability} is not in [0, 1/2)")
    if not 0.0 <= label_smoothing < 0.5 or (label_smoothing and flip_probability):
        raise ValueError("label_smoothing is in [0, 1/2), and 0 where labels are debiased for flips")


def selector_loss(choice_logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits)[label]: a binary selector that names the better of two answers, shape [n] from [n, 2] and [n].

    The loss of the first phase of FedBis (Wu et al. 2025, "Towards Federated RLHF with Aggregated Client Preference for
    LLMs"): cross-entropy over the two tokens that name the answers.
    """
    return functional.cross_entropy(choice_logits, label, reduction="none")
