"""Losses of policy optimisation: pure functions, one loss per record."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, scale_rewards: Literal["group", "none"] = "group") -> Tensor:
    """Advantages of one prompt's completions: r - mean(r), over std(r) + 1e-4 if ``group`` (Shao et al. 2024, eq. 3).

    Nothing is normalised across prompts, so no prompt's records touch another's (guarantees.md rule 13).

    Args:
        rewards: shape [G].

    | case | result |
    |---|---|
    | all rewards equal, or G = 1 | zeros |
    """
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
) -> Tensor:
    """GRPO's loss of every completion, for one step on samples of the present policy.

    On-policy the importance ratio is exp(log p - stop(log p)) = 1, whose gradient is that of log p, and no clipping is
    active (Shao et al. 2024, eq. 3 with pi_old = pi). ``grpo`` divides by the completion's length; ``dr_grpo`` by the
    constant ``max_completion_length`` (Liu et al. 2025, "Understanding R1-Zero-like training"). The KL penalty is the
    estimator k3 = exp(ref - log p) - (ref - log p) - 1.

    Args:
        logprobs: shape [G, L].
        completion_mask: shape [G, L], 1 for real tokens.
        advantages: shape [G].
        ref_logprobs: of the base model, shape [G, L]; needed where beta > 0.

    Returns:
        shape [G]; the mean over all completions of a step is TRL's loss.
    """
    ratio = torch.exp(logprobs - logprobs.detach())
    per_token = -ratio * advantages[:, None]
    if beta and ref_logprobs is not None:
        gap = ref_logprobs - logprobs
        per_token = per_token + beta * (torch.exp(gap) - gap - 1)
    per_token = torch.where(completion_mask.bool(), per_token, 0.0)
    if loss_type == "grpo":
        return per_token.sum(1) / completion_mask.sum(1).clamp(min=1)
    return per_token.sum(1) / max_completion_length
