"""Log-probabilities of completions: the prompt computed once where it is shared, the head on completion tokens only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from policy.head import head_logprobs
from reward.tokens import TokenRows
from reward.trunk import hidden_states, output_head


def answer_logps(model: Any, rows: TokenRows) -> Tensor:
    """log p(answer | prompt): the sum over the answer's tokens.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        rows: in either layout.

    Returns:
        shape [n, k], fp32 (fp64 for an fp64 model).

    | case | result |
    |---|---|
    | no records | [0, k] |
    | an answer without tokens | 0, without a gradient |
    | NaN in a record's hidden states | NaN in that record only |

    Raises:
        UnsupportedModelError: see ``reward.trunk.hidden_states`` and ``output_head``.
    """
    token = flat_token_logps(model, rows)
    slot, _ = rows.answer_slots
    sums = token.new_zeros(rows.num_records * rows.num_answers).index_add(0, slot, token)
    return sums.view(rows.num_records, rows.num_answers)


def token_logps(model: Any, rows: TokenRows, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """log p(token | prompt, tokens before it) of every token of every answer.

    Returns:
        the log-probabilities and a mask, both [n, k, L] with L the longest answer's length; answers begin at 0.

    Raises:
        UnsupportedModelError: see ``reward.trunk.hidden_states`` and ``output_head``.
    """
    token = flat_token_logps(model, rows, temperature)
    slot, place = rows.answer_slots
    length = int(place.max()) + 1 if len(place) else 0
    shape = (rows.num_records, rows.num_answers, length)
    padded = token.new_zeros(rows.num_records * rows.num_answers, length).index_put((slot, place), token)
    mask = torch.zeros(padded.shape, dtype=torch.bool, device=token.device).index_put(
        (slot, place), torch.ones_like(place, dtype=torch.bool)
    )
    return padded.view(shape), mask.view(shape)


def flat_token_logps(model: Any, rows: TokenRows, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of all answer tokens in the order of ``rows.answer_slots``, [tokens]."""
    head, hidden = output_head(model), hidden_states(model, rows)
    row, column, target = rows.predictions
    return head_logprobs(head, hidden[row, column], target, temperature)


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

    Raises:
        UnsupportedModelError: see ``reward.trunk.output_head``.
    """
    from transformers import DynamicCache

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk, head = causal.base_model, output_head(causal)
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
