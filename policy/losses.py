"""Losses of policy optimisation: pure functions, one loss per record."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from policy.coupled import check_loss_type
from reward.errors import TokenBatchError


def group_advantages(rewards: Tensor, scale_rewards: Literal["group", "none"] = "group") -> Tensor:
    """Advantages of one prompt's completions: r - mean(r), over std(r) + 1e-4 if ``group`` (Shao et al. 2024, eq. 3).

    Nothing is normalised across prompts, so no prompt's records touch another's (guarantees.md rule 13).

    Args:
        rewards: shape [G].

    | case | result |
    |---|---|
    | all rewards equal, or G = 1 | zeros |

    Raises:
        ObjectiveNameError: another ``scale_rewards``; TRL's ``batch`` couples prompts.
    """
    check_loss_type("scale_rewards", scale_rewards, ("group", "none"))
    centred = rewards - rewards.mean()
    if scale_rewards == "none" or len(rewards) < 2:
        return centred
    return centred / (rewards.std() + 1e-4)


def grpo_loss(
    logprobs: Tensor,
    completion_mask: Tensor,
    advantages: Tensor,
    *,
    loss_type: Literal["dr_grpo", "grpo"],
    max_completion_length: int,
    ref_logprobs: Tensor | None = None,
    beta: float = 0.0,
    old_logprobs: Tensor | None = None,
    epsilon: float = 0.2,
) -> Tensor:
    """GRPO's loss of every completion.

    Without ``old_logprobs`` it is the loss of one step on samples of the present policy: the importance ratio is
    exp(log p - stop(log p)) = 1, whose gradient is that of log p, and no clipping is active (Shao et al. 2024, eq. 3 with
    pi_old = pi). ``grpo`` divides by the completion's length; ``dr_grpo`` by the constant ``max_completion_length`` (Liu et
    al. 2025, "Understanding R1-Zero-like training"). The KL penalty is the estimator k3 = exp(ref - log p) - (ref - log p) - 1,
    times the ratio: on-policy the same value, but then its gradient is that of the KL, without bias (DeepSeek-AI 2025,
    arXiv 2512.02556; TRL's ``use_bias_correction_kl``, its default).

    Args:
        logprobs: shape [G, L].
        completion_mask: shape [G, L], 1 for real tokens.
        advantages: shape [G].
        ref_logprobs: of the base model, shape [G, L]; needed where beta > 0.
        old_logprobs: of the policy that sampled, shape [G, L], where later steps go on with its samples; then the ratio is
            clipped to 1 +- ``epsilon``, on the side where it would go too far.

    Returns:
        shape [G]; the mean over all completions of a step is TRL's loss.

    Raises:
        ObjectiveNameError: a loss type that couples records (``dapo``, ``bnpo``, ...), or an unknown one.
        TokenBatchError: beta > 0 without ``ref_logprobs``.
    """
    check_loss_type("grpo", loss_type, ("dr_grpo", "grpo"))
    ratio = torch.exp(logprobs - (logprobs.detach() if old_logprobs is None else old_logprobs))
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    per_token = -torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    if beta:
        if ref_logprobs is None:
            raise TokenBatchError(
                "GRPO's KL has nothing to compare with.",
                f"beta={beta}, and there are no reference log-probabilities.",
                "Compute them with policy.logprobs under the reference model, or set beta to 0.",
            )
        gap = ref_logprobs - logprobs
        per_token = per_token + beta * ratio * (torch.exp(gap) - gap - 1)
    per_token = torch.where(completion_mask.bool(), per_token, 0.0)
    if loss_type == "grpo":
        return per_token.sum(1) / completion_mask.sum(1).clamp(min=1)
    return per_token.sum(1) / max_completion_length


def kto_loss(
    log_ratios: Tensor,
    label: Tensor,
    reference_point: float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO's loss of every record, shape [n] (Ethayarajh et al. 2024, eq. 7-8), with a reference point that is given.

    w_d (1 - sigmoid(beta (r - z))) where ``label`` is true, else w_u (1 - sigmoid(beta (z - r))), with r the log-ratio of the
    completion. The paper, and TRL, estimate z from the batch's other records, which couples them: one person's text would
    move everybody's gradient, and clipping each bounds nothing. Here z is one public or noised and booked number.

    Args:
        log_ratios: log p(completion) minus the reference's, shape [n].
        label: bool [n].
        reference_point: z in nats; below 0 (noise) it counts as 0, where TRL clamps it too.

    | case | result |
    |---|---|
    | z = 0 | TRL's first step, where the policy is the reference; at every step TRL's `loss_type: apo_zero_unpaired` |
    | a completion without tokens | a constant |
    | NaN in a record | NaN in its loss only |

    Raises:
        ValueError: z is not finite.
    """
    if not math.isfinite(reference_point):
        raise ValueError(f"reference_point={reference_point} is not finite")
    gap = beta * (log_ratios - max(reference_point, 0.0))
    desirable, undesirable = 1 - torch.sigmoid(gap), 1 - torch.sigmoid(-gap)
    return torch.where(label, desirable_weight * desirable, undesirable_weight * undesirable)


def sft_loss(logps: Tensor, lengths: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Negative log-likelihood of every completion, shape [n]: over its own tokens, ``mean`` (nats a token) or ``sum``.

    TRL's ``SFTTrainer`` divides the sum over a batch by the tokens of the batch, so that a long record of one person
    shrinks the gradient of the others; for a batch of one record it is ``mean``.

    Args:
        logps: log-probabilities of whole completions, shape [n].
        lengths: their tokens, shape [n].

    | case | result |
    |---|---|
    | a completion without tokens | 0, without a gradient |
    """
    return -logps / lengths.clamp(min=1) if reduction == "mean" else -logps
