"""Frozen features of conversations: the mean, over all tokens, of the hidden states after a transformer block, or several.

The prompt's keys and values are computed once and shared by all its completions, which halves the work where many
completions answer few prompts. Completions are never batched together: the last bits of a padded batch depend on all its
texts, so one person's text would move other people's features, which no clipping bounds (guarantees.md rule 17). A deployed
client runs the same function on its own texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from reward.backbone import Backbone, load_backbone
from reward.pairs import Conversation, render

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureConfig:
    """What a feature is; a released reward model stores it.

    ``layer`` is the number of blocks that are run; ``layers``, if given, are those whose states are all kept, ``layer`` the
    deepest of them.
    """

    model_name_or_path: str
    layer: int
    max_length: int
    pooling: str = "mean"
    dtype: str = "auto"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """JSON has no tuples.

        Raises:
            ValueError: ``layers`` do not rise to ``layer``.
        """
        if self.layers is None:
            return
        layers = tuple(self.layers)
        if list(layers) != sorted(set(layers)) or not layers or layers[0] < 1 or layers[-1] != self.layer:
            raise ValueError(f"layers {layers} do not rise to layer {self.layer}")
        object.__setattr__(self, "layers", layers)

    def to_json(self) -> dict[str, Any]:
        """As stored, and as key of caches; ``layers`` is left out where there are none, as before there were any."""
        return {key: value for key, value in asdict(self).items() if value is not None}


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

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one text's features: [hidden], or [layers, hidden]."""
        return (self.hidden_size,) if self.config.layers is None else (len(self.config.layers), self.hidden_size)

    def __call__(
        self, conversations: Sequence[Conversation], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Array:
        """Features, shape [n, hidden] or [n, layers, hidden] fp32, in the order given; all layers from one pass.

        | case | result |
        |---|---|
        | no conversation | shape [0, hidden] or [0, layers, hidden] |
        | empty completion | the prompt's mean |
        | longer than max_length tokens | the end is cut off |
        | the model gives NaN or inf | passed on; clipping drops that unit |
        """
        features = np.zeros((len(conversations), *self.shape), dtype=np.float32)
        by_prompt: dict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
        for i, conversation in enumerate(conversations):
            by_prompt[conversation.prompt].append(i)
        done = 0
        with torch.inference_mode():
            for prompt, members in by_prompt.items():
                prompt_ids = self._prompt_tokens(prompt)[: self.config.max_length]
                room = self.config.max_length - len(prompt_ids)
                prompt_sum, cache = self._sum(prompt_ids)
                for i in members:
                    completion = self._tokens(conversations[i].completion)[:room]
                    total = prompt_sum + self._completion_sum(completion, cache)
                    features[i] = (total / (len(prompt_ids) + len(completion))).cpu().numpy()
                    done += 1
                    progress(done, len(conversations))
        return features

    def _completion_sum(self, ids: list[int], cache: Any) -> Tensor | float:
        """Sum of the hidden states over a completion that follows the cached prompt, of one text's shape."""
        if not ids:
            return 0.0
        total, _ = self._sum(ids, cache)
        cache.crop(-len(ids))  # back to the prompt
        return total

    def _sum(self, ids: list[int], cache: Any = None) -> tuple[Tensor, Any]:
        """Sum of the hidden states over tokens that follow ``cache``, and the cache with them."""
        layers = self.config.layers
        given = {"input_ids": self._tensor(ids), "past_key_values": cache, "use_cache": True}
        output = self._trunk(**given, output_hidden_states=layers is not None)
        states = (output.last_hidden_state,) if layers is None else [output.hidden_states[i] for i in layers]
        sums = torch.stack([state.float().sum(1)[0] for state in states])
        return (sums[0] if layers is None else sums), output.past_key_values

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.backbone.device)

    def _prompt_tokens(self, prompt: tuple[tuple[str, str], ...]) -> list[int]:
        """At least one, so that there is a mean."""
        return self._tokens(render(self.backbone.tokenizer, prompt)) or [self.backbone.tokenizer.eos_token_id]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
