"""Sample completions from a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from reward.backbone import Backbone
from reward.pairs import Conversation


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
    """``num_generations`` completions of every prompt, in order.

    Args:
        backbone: model and tokenizer.
        prompts: user messages.
        num_generations: completions a prompt.
        max_completion_length: tokens.
        temperature: of the softmax; the whole vocabulary is sampled from.
        seed: of torch's generator.
        vary_length: cut every second completion at a random length from 8 tokens up, so that lengths vary.
        progress: told (done, total).
    """
    torch.manual_seed(seed)
    cut = np.random.default_rng(seed)
    tokenizer, results = backbone.tokenizer, list[Conversation]()
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        inputs = tokenizer([text] * num_generations, return_tensors="pt", add_special_tokens=False).to(backbone.device)
        with torch.inference_mode():
            output = backbone.model.generate(
                **inputs,
                max_new_tokens=max_completion_length,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
        for i, row in enumerate(output[:, inputs["input_ids"].shape[1] :]):
            keep = int(cut.integers(8, max_completion_length + 1)) if vary_length and i % 2 else max_completion_length
            completion = tokenizer.decode(row[:keep], skip_special_tokens=True)
            results.append(Conversation((("user", prompt),), completion))
        progress(len(results), len(prompts) * num_generations)
    return results
