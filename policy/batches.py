"""Batches of token records for KTO, SFT and GRPO. Pairs are ``reward.batches.PairBatch``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reward.batches import PairBatch, TokenBatch

__all__ = ["CompletionBatch", "GroupBatch", "PairBatch", "UnpairedBatch"]


@dataclass(frozen=True, kw_only=True)
class CompletionBatch(TokenBatch):
    """Prompts with one completion each (SFT)."""


@dataclass(frozen=True, kw_only=True)
class UnpairedBatch(TokenBatch):
    """Prompts with one completion and one judgement each (KTO).

    Attributes:
        label: bool [n], true where the completion is desirable (TRL's column ``label``).
        ref_logps: log-probability of the completion under the reference model, [n].
        reference_point: z of KTO, the policy's divergence from the reference in nats: one number for the round that every
            client was told, either public or the noised and booked figure of a round before, never this batch's.
    """

    label: Tensor
    ref_logps: Tensor | None = None
    reference_point: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GroupBatch(TokenBatch):
    """Prompts with G sampled completions each (GRPO); the record is the whole group.

    Attributes:
        advantages: of every completion within its group, [n, G] (``policy.losses.group_advantages``).
        ref_token_logps: per token under the reference model, as ``policy.logprobs.token_logps`` lays them out, [n, G, L];
            needed where beta > 0.
        old_token_logps: the same under the policy that sampled, [n, G, L]; needed where a client takes several steps on
            the same samples.
    """

    advantages: Tensor
    ref_token_logps: Tensor | None = None
    old_token_logps: Tensor | None = None
