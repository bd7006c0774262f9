"""Log-probabilities of completions: the prompt is computed once for its whole group, the head on completion tokens only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def group_logprobs(
    model: Any, prompt_ids: Tensor, completion_ids: Tensor, completion_mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """log p(token | prompt, tokens before it) of every token of a group's completions.

    The prompt's keys and values are shared by the group and keep their gradients, so the result and its gradient are
    those of ``num_generations`` full sequences, at a fraction of the work.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        prompt_ids: the prompt's tokens, shape [P], without padding.
        completion_ids: shape [G, L], padded on the right.
        completion_mask: shape [G, L], 1 for real tokens.
        temperature: divides the logits, as in TRL.

    Returns:
        shape [G, L], fp32; meaningless where the mask is 0.
    """
    from transformers import DynamicCache

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk, head = causal.base_model, causal.get_output_embeddings()
    size = len(completion_ids)
    cache = DynamicCache(config=causal.config)
    prompt = trunk(input_ids=prompt_ids[None], past_key_values=cache, use_cache=True).last_hidden_state
    hidden = prompt[:, -1:].expand(size, -1, -1)
    if completion_ids.shape[1] > 1:
        cache.batch_repeat_interleave(size)
        seen = torch.cat([completion_mask.new_ones(size, len(prompt_ids)), completion_mask[:, :-1]], dim=1)
        rest = trunk(
            input_ids=completion_ids[:, :-1], past_key_values=cache, attention_mask=seen, use_cache=True
        ).last_hidden_state
        hidden = torch.cat([hidden, rest], dim=1)
    logits = head(hidden).float() / temperature
    flat = functional.cross_entropy(logits.flatten(0, 1), completion_ids.flatten(), reduction="none")
    return -flat.view(completion_ids.shape)
