"""Sample completions from a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward.backbone import Backbone
from reward.errors import PromptError
from reward.pairs import Conversation, as_conversation, render

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Rollout:
    """Completions of some prompts, in order: ``num_generations`` of the first, then of the second, and so on.

    Attributes:
        rows: the data set's rows, one per completion.
        prompt_ids: the prompt's tokens, one tensor [P] per completion, without padding.
        completion_ids: shape [n, L], padded on the right.
        completion_mask: shape [n, L], 1 up to and with the end-of-sequence token.
        completions: the text of each, without special tokens.
    """

    rows: list[Mapping[str, Any]]
    prompt_ids: list[Tensor]
    completion_ids: Tensor
    completion_mask: Tensor
    completions: list[str]

    @property
    def lengths(self) -> Tensor:
        """Tokens of every completion, shape [n]."""
        return self.completion_mask.sum(1)


def as_messages(prompt: Any) -> Messages:
    """TRL's standard or conversational prompt -> a list of messages; a string is what the user says."""
    return [{"role": role, "content": content} for role, content in as_conversation(prompt, "").prompt]


def prompt_tokens(backbone: Backbone, prompt: Any, max_completion_length: int) -> list[int]:
    """Tokens of a prompt, rendered by the chat template with the assistant's turn opened.

    Raises:
        PromptError: empty, or too long for the model's context with the completion that is asked for.
    """
    messages = as_conversation(prompt, "").prompt
    if not "".join(content for _, content in messages).strip():
        raise PromptError("A prompt is empty.", "It has no text.", "Leave it out of the data set.")
    text = render(backbone.tokenizer, messages)
    ids: list[int] = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    context = int(backbone.model.config.max_position_embeddings)
    if len(ids) + max_completion_length > context:
        raise PromptError(
            f"A prompt of {len(ids)} tokens is too long.",
            f"With {max_completion_length} tokens of completion it exceeds the model's context of {context}.",
            "Leave it out of the data set, or lower policy.max_completion_length.",
        )
    return ids


def sample_rollout(
    backbone: Backbone,
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int | None = None,
) -> Rollout:
    """``num_generations`` completions of every row's ``prompt``, all in one batch.

    Args:
        backbone: tokenizer and device.
        model: the policy: ``backbone.model``, or a PEFT model around it.
        rows: of a prompt-only data set.
        temperature: of the softmax; the whole vocabulary is sampled from, as GRPO's loss assumes.
        seed: of torch's generator; None goes on from where it is.

    Raises:
        PromptError: a prompt is empty or too long.
    """
    tokenizer, device = backbone.tokenizer, backbone.device
    prompts = [torch.tensor(prompt_tokens(backbone, row["prompt"], max_completion_length)) for row in rows]
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, device=device)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):  # padded on the left: what follows must be next to the prompt
        ids[i, width - len(prompt) :], mask[i, width - len(prompt) :] = prompt.to(device), 1
    if seed is not None:
        torch.manual_seed(seed)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output = model.generate(
            input_ids=ids.repeat_interleave(num_generations, dim=0),
            attention_mask=mask.repeat_interleave(num_generations, dim=0),
            past_key_values=_prompt_cache(model, ids, mask, num_generations, width + max_completion_length),
            max_new_tokens=max_completion_length,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            remove_invalid_values=True,  # parameters that overflow must not stop who samples: that would tell of the text
            pad_token_id=tokenizer.pad_token_id,
        )
    model.train(was_training)
    completion = output[:, width:]
    keep = _until_end(completion, backbone)
    texts = [
        tokenizer.decode(row[: int(n)], skip_special_tokens=True)
        for row, n in zip(completion, keep.sum(1), strict=True)
    ]
    each = [p for p in prompts for _ in range(num_generations)]
    return Rollout([r for r in rows for _ in range(num_generations)], each, completion, keep, texts)


def _prompt_cache(model: Any, ids: Tensor, mask: Tensor, num_generations: int, length: int) -> Any:
    """Keys and values of all prompt tokens but the last, computed once a prompt and repeated for its completions.

    Args:
        ids, mask: the prompts, shape [prompts, P], padded on the left.
        length: room for prompt and completion, allocated once: a cache that grows copies itself at every token.

    Returns:
        a transformers cache of prompts * num_generations rows, as ``generate(past_key_values=)`` takes it.
    """
    from transformers import DynamicCache, StaticCache

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    cache: Any = StaticCache(config=causal.config, max_cache_len=length)
    if ids.shape[1] == 1:
        return cache
    once: Any = DynamicCache(config=causal.config)
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, :-1]
    causal.base_model(
        input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=places, past_key_values=once, use_cache=True
    )
    once.batch_repeat_interleave(num_generations)
    for filled, layer in zip(once.layers, cache.layers, strict=True):
        layer.update(filled.keys, filled.values)
    return cache


def _until_end(completion: Tensor, backbone: Backbone) -> Tensor:
    """1 up to and with the first end-of-sequence token, shape of ``completion``."""
    ends = backbone.model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [backbone.tokenizer.eos_token_id])
    is_end = torch.isin(completion, torch.tensor(ends, device=completion.device))
    return (is_end.cumsum(1) - is_end.long() == 0).long()


def sample_completions(
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    vary_length: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Conversation]:
    """``num_generations`` completions of every prompt, in order, prompt by prompt.

    Args:
        backbone: model and tokenizer.
        prompts: user messages.
        num_generations: completions a prompt.
        max_completion_length: tokens.
        temperature: of the softmax; the whole vocabulary is sampled from.
        seed: of torch's generator, for the first prompt; the next prompts go on from there.
        vary_length: cut every second completion at a random length from 8 tokens up, so that lengths vary.
        progress: told (done, total).
    """
    cut = np.random.default_rng(seed)
    results: list[Conversation] = []
    for prompt in prompts:
        rollout = sample_rollout(
            backbone,
            backbone.model,
            [{"prompt": prompt}],
            num_generations=num_generations,
            max_completion_length=max_completion_length,
            temperature=temperature,
            seed=seed if not results else None,
        )
        for i, row in enumerate(rollout.completion_ids):
            keep = int(cut.integers(8, max_completion_length + 1)) if vary_length and i % 2 else max_completion_length
            completion = backbone.tokenizer.decode(row[:keep], skip_special_tokens=True)
            results.append(Conversation((("user", prompt),), completion))
        progress(len(results), len(prompts) * num_generations)
    return results
