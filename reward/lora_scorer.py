"""A released LoRA reward model: adapter and score in PEFT's format, with what scoring needs beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reward.backbone import Backbone
from reward.errors import AdapterError, RewardModelError
from reward.model import answer_scores, load_adapter, load_score_backbone
from reward.pairs import Conversation
from reward.scorer import CONFIG, Scorer
from reward.tokens import TokenRecord, collate, tokenize

FORMAT = "fedpref-reward-lora-1"
_TOKENS_PER_BATCH = 2048  # padding included


@dataclass(frozen=True)
class LoraRewardConfig:
    """What scores depend on beside PEFT's two files: the base model, its type, and where texts are cut off."""

    model_name_or_path: str
    max_length: int
    dtype: str = "float32"

    def to_bytes(self) -> bytes:
        """The file ``reward_config.json``."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n").encode()


@dataclass
class LoraRewardModel(Scorer):
    """A trunk under a LoRA adapter, and a score at the answer's last token."""

    config: LoraRewardConfig
    backbone: Backbone
    model: Any

    def score_conversations(
        self, conversations: Sequence[Conversation], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> npt.NDArray[np.float64]:
        """Scores, shape [n]; longest texts first, in batches by tokens; ``progress`` counts texts that differ.

        | case | result |
        |---|---|
        | no conversation | shape [0] |
        | texts of the same tokens, as cut off | one score |
        | empty completion | scored at what the template puts behind it |
        | longer than max_length tokens | the end is cut off |
        """
        length, tokenizer = self.config.max_length, self.backbone.tokenizer
        records = [tokenize(tokenizer, c.prompt, [c.completion], max_length=length) for c in conversations]
        texts = sorted(set(records), key=lambda record: -record.num_tokens)
        score: dict[TokenRecord, float] = {}
        while len(score) < len(texts):
            batch = texts[len(score) :][: max(1, _TOKENS_PER_BATCH // texts[len(score)].num_tokens)]
            rows = collate(batch, num_answers=1, layout="separate").to(self.backbone.device)
            with torch.inference_mode():
                score.update(zip(batch, answer_scores(self.model, rows)[:, 0].tolist(), strict=True))
            progress(len(score), len(texts))
        return np.array([score[record] for record in records])

    @classmethod
    def load(cls, path: str | Path, say: Callable[[str], None] = lambda _: None) -> LoraRewardModel:
        """Load the folder ``release/reward`` of a run with ``training.objective: bradley_terry``.

        Raises:
            RewardModelError: not such a folder, another format, or an adapter of another base model.
            ModelNotFoundError: the base model is not to be had.
        """
        folder = Path(path)
        try:
            given = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if given.pop("format") != FORMAT:
                raise ValueError("it has another format")
            config = LoraRewardConfig(**given)
            if not isinstance(config.max_length, int) or config.dtype not in {"float32", "bfloat16"}:
                raise ValueError("its settings are none")
            backbone = load_score_backbone(config.model_name_or_path, dtype=config.dtype, say=say)
            return cls(config, backbone, load_adapter(backbone, folder))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AdapterError) as error:
            raise RewardModelError(
                f"{folder}: no LoRA reward model that this version reads.",
                f"{type(error).__name__}: {error}"[:300],
                "Give the folder `release/reward` of a finished run.",
            ) from None
