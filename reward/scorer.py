"""A released reward model: load, score, use as a reward function in TRL."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from reward.errors import RewardModelError
from reward.features import Array, FeatureConfig, FeatureExtractor
from reward.head import PublicProjection
from reward.pairs import Conversation, as_conversation

FORMAT = "fedpref-reward-1"
WEIGHTS, CONFIG = "reward_head.safetensors", "reward_config.json"


@dataclass
class RewardModel:
    """Frozen features, public projection, private-trained head."""

    extractor: FeatureExtractor
    projection: PublicProjection
    weight: npt.NDArray[np.float32]

    __name__ = "fedpref_reward"  # TRL logs a reward function under its name

    def score(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """One score per (prompt, completion); higher is preferred.

        Args:
            prompts: strings or lists of messages, as in TRL.
            completions: strings or lists of one message.
        """
        conversations = [as_conversation(p, c) for p, c in zip(prompts, completions, strict=True)]
        return [float(score) for score in self.score_conversations(conversations)]

    def score_conversations(
        self, conversations: Sequence[Conversation], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> npt.NDArray[np.float64]:
        """Scores, shape [n]."""
        return head_scores(self.projection(self.extractor(conversations, progress)), self.weight)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """TRL's reward function: ``GRPOTrainer(reward_funcs=[reward.load(path)])``."""
        del columns
        return self.score(prompts, completions)

    @classmethod
    def load(cls, path: str | Path, say: Callable[[str], None] = lambda _: None) -> RewardModel:
        """Load a folder that holds ``reward_model_files``.

        Raises:
            RewardModelError: not such a folder, another format, or broken weights.
            ModelNotFoundError: the base model is not to be had.
        """
        folder = Path(path)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            tensors = safetensors.numpy.load_file(folder / WEIGHTS)
            if config.get("format") != FORMAT:
                raise ValueError(f"format {config.get('format')!r}")
            features = FeatureConfig(**config["features"])
            projection = PublicProjection(tensors["mean"], tensors["std"], tensors["components"])
            weight = tensors["score.weight"]
            if (*projection.mean.shape, weight.size) != projection.components.shape:
                raise ValueError("the head does not fit the projection")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            raise RewardModelError(
                f"{folder}: no reward model that this version reads.",
                f"{type(error).__name__}: {error}"[:200],
                "Give the folder `release/reward` of a finished run.",
            ) from None
        return cls(FeatureExtractor(features, say), projection, weight)


def head_scores(projected: Array, weight: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Scores of projected features, shape [n] from [n, d] and [d], in 64-bit floats."""
    return projected.astype(np.float64) @ weight.astype(np.float64).reshape(-1)


def reward_model_files(
    features: FeatureConfig, projection: PublicProjection, weight: npt.NDArray[np.floating]
) -> dict[str, bytes]:
    """The files of a released reward model, name -> content. The caller writes them: it knows how to make them durable."""
    tensors = {
        "mean": projection.mean,
        "std": projection.std,
        "components": np.ascontiguousarray(projection.components),
        "score.weight": weight.astype(np.float32).reshape(1, -1),
    }
    config = {"format": FORMAT, "features": asdict(features)}
    return {WEIGHTS: safetensors.numpy.save(tensors), CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
