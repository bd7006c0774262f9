"""Frozen features of conversations: the mean, over all tokens, of the hidden states after one transformer block.

The prompt's keys and values are computed once and shared by all its completions, which halves the work where many
completions answer few prompts. A deployed client runs the same function on its own texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from reward.backbone import Backbone, load_backbone
from reward.pairs import Conversation

Array = npt.NDArray[np.float32]
_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class FeatureConfig:
    """What a feature is; a released reward model stores it."""

    model_name_or_path: str
    layer: int
    max_length: int
    pooling: str = "mean"
    dtype: str = "auto"


class FeatureExtractor:
    """Texts -> features. Holds the first ``layer`` blocks of the model, nothing private."""

    def __init__(self, config: FeatureConfig, say: Callable[[str], None] = lambda _: None) -> None:
        """Load the model (fetching an embedded one first)."""
        self.config = config
        self.backbone: Backbone = load_backbone(
            config.model_name_or_path, num_layers=config.layer, dtype=config.dtype, say=say
        )
        self._trunk: Any = self.backbone.model.base_model
        if hasattr(self._trunk, "norm"):  # the hidden state between two blocks has not passed the final norm
            self._trunk.norm = nn.Identity()

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return int(self.backbone.model.config.hidden_size)

    def __call__(
        self, conversations: Sequence[Conversation], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Array:
        """Features, shape [n, hidden] fp32, in the order given.

        | case | result |
        |---|---|
        | no conversation | shape [0, hidden] |
        | empty completion | the prompt's mean |
        | longer than max_length tokens | the end is cut off |
        | the model gives NaN or inf | passed on; clipping drops that unit |
        """
        features = np.zeros((len(conversations), self.hidden_size), dtype=np.float32)
        by_prompt: dict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
        for i, conversation in enumerate(conversations):
            by_prompt[conversation.prompt].append(i)
        done = 0
        with torch.inference_mode():
            for prompt, members in by_prompt.items():
                prompt_ids = self._render(prompt)[: self.config.max_length]
                room = self.config.max_length - len(prompt_ids)
                ids = {i: self._tokens(conversations[i].completion)[:room] for i in members}
                for batch in _batches(ids, len(prompt_ids)):
                    features[batch] = self._pool(prompt_ids, [ids[i] for i in batch]).cpu().numpy()
                    done += len(batch)
                    progress(done, len(conversations))
        return features

    def _pool(self, prompt_ids: list[int], completions: list[list[int]]) -> Tensor:
        """Mean hidden state over prompt and completion, shape [batch, hidden]."""
        device, n = self.backbone.device, len(completions)
        prompt = self._trunk(input_ids=torch.tensor([prompt_ids], device=device), use_cache=True)
        total: Tensor = prompt.last_hidden_state.float().sum(1).expand(n, -1)
        longest = max(len(c) for c in completions)
        if longest == 0:
            return total / len(prompt_ids)
        pad = self.backbone.tokenizer.pad_token_id
        ids = torch.tensor([c + [pad] * (longest - len(c)) for c in completions], device=device)
        mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in completions], device=device)
        cache = prompt.past_key_values
        cache.batch_repeat_interleave(n)
        seen = torch.cat([torch.ones(n, len(prompt_ids), dtype=mask.dtype, device=device), mask], dim=1)
        hidden = self._trunk(
            input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=True
        ).last_hidden_state
        total = total + torch.where(mask[..., None].bool(), hidden.float(), 0.0).sum(1)
        return total / seen.sum(1, keepdim=True)

    def _render(self, prompt: tuple[tuple[str, str], ...]) -> list[int]:
        tokenizer = self.backbone.tokenizer
        if tokenizer.chat_template:
            messages = [{"role": role, "content": content} for role, content in prompt]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        else:
            text = "\n".join(content for _, content in prompt) + "\n"
        ids = self._tokens(text)
        return ids or [tokenizer.eos_token_id]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _batches(ids: dict[int, list[int]], prompt_length: int) -> list[list[int]]:
    """Indices in batches of similar length, each of at most about ``_TOKENS_PER_BATCH`` tokens."""
    batches: list[list[int]] = [[]]
    for i in sorted(ids, key=lambda i: len(ids[i])):
        if batches[-1] and (len(batches[-1]) + 1) * (prompt_length + len(ids[i])) > _TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(i)
    return [batch for batch in batches if batch]
