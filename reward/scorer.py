"""A released reward model, here a head on frozen features: load, score, use as a reward function in TRL."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch

from reward.errors import RewardModelError
from reward.features import Array, FeatureConfig, FeatureExtractor
from reward.head import PublicProjection, RewardHead, set_weight
from reward.layout import HeadLayout
from reward.pairs import Conversation, as_conversation

FORMAT = "fedpref-reward-1"  # a linear head on one layer
LEARNED_FORMAT = "fedpref-reward-2"  # any other head: older versions must not take it for a linear one
WEIGHTS, CONFIG = "reward_head.safetensors", "reward_config.json"


class Scorer(ABC):
    """What every released reward model offers."""

    __name__ = "fedpref_reward"  # TRL logs a reward function under its name

    @abstractmethod
    def score_conversations(
        self, conversations: Sequence[Conversation], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> npt.NDArray[np.float64]:
        """Scores, shape [n]."""

    def score(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """One score per (prompt, completion); higher is preferred.

        Args:
            prompts: strings or lists of messages, as in TRL.
            completions: strings or lists of one message.
        """
        conversations = [as_conversation(p, c) for p, c in zip(prompts, completions, strict=True)]
        return [float(score) for score in self.score_conversations(conversations)]

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """TRL's reward function: ``GRPOTrainer(reward_funcs=[reward.load(path)])``."""
        del columns
        return self.score(prompts, completions)


@dataclass
class RewardModel(Scorer):
    """Frozen features, public projection, private-trained head."""

    extractor: FeatureExtractor
    projection: PublicProjection
    weight: npt.NDArray[np.float32]
    """All that was trained, flat."""
    layout: HeadLayout | None = None
    """None: a linear head of ``weight``'s size."""

    def score_conversations(
        self, conversations: Sequence[Conversation], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> npt.NDArray[np.float64]:
        """Scores, shape [n]."""
        return head_scores(self.projection(self.extractor(conversations, progress)), self.weight, self.layout)

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
            projection = PublicProjection(*(tensors.pop(name) for name in ("mean", "std", "components")))
            layout = HeadLayout.of([(name, value.shape) for name, value in tensors.items()])
            features = FeatureConfig(**config["features"])
            if config.get("format") != _format(layout):
                raise ValueError(f"format {config.get('format')!r}")
            _check_fit(features, projection, layout)
            weight = np.concatenate([tensors[name].reshape(-1) for name, _ in layout.shapes])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            raise RewardModelError(
                f"{folder}: no reward model that this version reads.",
                f"{type(error).__name__}: {error}"[:200],
                "Give the folder `release/reward` of a finished run.",
            ) from None
        return cls(FeatureExtractor(features, say), projection, weight, layout)


def _format(layout: HeadLayout) -> str:
    return FORMAT if layout == HeadLayout(layout.dimension) else LEARNED_FORMAT


def _check_fit(features: FeatureConfig, projection: PublicProjection, layout: HeadLayout) -> None:
    """Refuse parts that are not of one model."""
    layers = None if features.layers is None else len(features.layers)
    hidden = projection.components.shape[0]
    expected = (hidden,) if layers is None else (layers, hidden)
    if layers != layout.num_layers or not projection.mean.shape == projection.std.shape == expected:
        raise ValueError("the layers, the projection and the head do not fit each other")
    if projection.components.shape != (hidden, layout.dimension):
        raise ValueError("the head does not fit the projection")


def head_scores(
    projected: Array, weight: npt.NDArray[np.floating], layout: HeadLayout | None = None
) -> npt.NDArray[np.float64]:
    """Scores of projected features in 64-bit floats, shape [n] from [n, d], or [n, layers, d] where layers are mixed.

    Args:
        projected: of a ``PublicProjection``.
        weight: all that the head trains, flat.
        layout: which head; None: a linear one.

    Raises:
        ValueError: ``weight`` has another size than the layout.
    """
    if layout is None or layout == HeadLayout(layout.dimension):
        return projected.astype(np.float64) @ weight.astype(np.float64).reshape(-1)
    head = RewardHead.of(layout.shapes).double()
    set_weight(head, weight)
    with torch.inference_mode():
        return np.asarray(head(torch.from_numpy(projected.astype(np.float64))).numpy())


def reward_model_files(
    features: FeatureConfig,
    projection: PublicProjection,
    weight: npt.NDArray[np.floating],
    layout: HeadLayout | None = None,
) -> dict[str, bytes]:
    """The files of a released reward model, name -> content. The caller writes them: it knows how to make them durable."""
    layout = layout or HeadLayout(weight.size)
    tensors = {
        "mean": projection.mean,
        "std": projection.std,
        "components": np.ascontiguousarray(projection.components),
        **{name: np.ascontiguousarray(value) for name, value in layout.split(weight.astype(np.float32)).items()},
    }
    config = {"format": _format(layout), "features": features.to_json()}
    return {WEIGHTS: safetensors.numpy.save(tensors), CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
