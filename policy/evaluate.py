"""Per-completion figures of a policy beside its base model: KL, wins, exact match. Tables are the federation room's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from policy.logprobs import group_logprobs
from policy.rollout import Rollout

Figures = npt.NDArray[np.float64]


def kl_to_base(model: Any, rollout: Rollout, num_generations: int) -> Figures:
    """log pi(completion) - log base(completion) of the policy's own samples, in nats, shape [n].

    Its mean is an unbiased estimate of KL(policy || base) per completion. ``rollout`` must come from ``model`` with its
    adapter on, at temperature 1.
    """
    gaps = []
    with torch.no_grad():
        for first in range(0, len(rollout.rows), num_generations):
            members = slice(first, first + num_generations)
            arguments = (rollout.prompt_ids[first], rollout.completion_ids[members], rollout.completion_mask[members])
            policy = group_logprobs(model, *arguments)
            with model.disable_adapter():
                base = group_logprobs(model, *arguments)
            gaps.append(((policy - base) * rollout.completion_mask[members]).sum(1).double().cpu())
    return torch.cat(gaps).numpy() if gaps else np.zeros(0)


def wins(policy_scores: Figures, base_scores: Figures) -> Figures:
    """Every completion of the policy against every one of the base model to the same prompt.

    Args:
        policy_scores: a judge's scores, shape [prompts, n].
        base_scores: shape [prompts, m].

    Returns:
        1 where the policy's scores higher, 0.5 for a tie or a score that is not finite, else 0; shape [prompts, n, m].
    """
    with np.errstate(invalid="ignore"):  # inf - inf
        margin = policy_scores[:, :, None] - base_scores[:, None, :]
    return np.where(np.isfinite(margin), np.where(margin == 0, 0.5, (margin > 0).astype(np.float64)), 0.5)
