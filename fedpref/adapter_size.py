"""How many numbers an adapter trains, from the model's config.json alone: `plan` loads no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpref.config import Recipe
from fedpref.config_training import TrainingConfig
from fedpref.errors import UnsupportedPlanError
from fedpref.manifest import reward_manifest

_EMBEDDED = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}  # SmolLM2-135M-Instruct


def trainable_dimension(recipe: Recipe) -> int | None:
    """Numbers of one update; None where the model is not here, or has layers that are not known by name."""
    if recipe.reward is not None:
        return reward_manifest(recipe.reward).dimension
    config, training = _model_config(recipe.model_name_or_path), recipe.adapter
    if config is None:
        return None
    score = int(config["hidden_size"]) if training.spec.score else 0
    if training.adapter == "prompt_tuning":
        return training.num_virtual_tokens * int(config["hidden_size"]) + score
    shapes = [_shape(name, config) for name in training.lora_target_modules]
    if any(shape is None for shape in shapes):
        return None
    per_layer = sum(_numbers(training, *shape) for shape in shapes if shape is not None)
    return int(config["num_hidden_layers"]) * per_layer + score


def secure_dimension(recipe: Recipe) -> int:
    """``trainable_dimension`` for the codec of secure aggregation, whose grid and noise are planned for it.

    Raises:
        UnsupportedPlanError: it is not known before the model is loaded.
    """
    dimension = trainable_dimension(recipe)
    if dimension is None:
        raise UnsupportedPlanError(
            "privacy.trust: distributed needs the number of trained values before the model is loaded.",
            "Grid, ring and noise of secure aggregation depend on it; the model's config.json is not here, or a layer of "
            "training.lora_target_modules is not one of a Llama-like model.",
            "Name a folder with the model and its config.json, or target q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj "
            "or down_proj.",
        )
    return dimension


def _numbers(training: TrainingConfig, wide: int, high: int) -> int:
    """Of one target layer from ``wide`` to ``high``."""
    r = training.lora_r
    return {"lora": r * (wide + high), "lora_frozen_a": r * high, "lora_core": r * r}[training.adapter]


def _shape(name: str, config: dict[str, Any]) -> tuple[int, int] | None:
    """(in, out) of a linear layer of a Llama-like model."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    width = int(config.get("head_dim") or hidden // heads)
    keys, inner = width * int(config.get("num_key_value_heads") or heads), int(config["intermediate_size"])
    shapes = {"q_proj": (hidden, width * heads), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
    shapes |= {"o_proj": (width * heads, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
    return (shapes | {"down_proj": (inner, hidden)}).get(name)


def _model_config(name: str) -> dict[str, Any] | None:
    if name.startswith("embedded/"):
        return _EMBEDDED
    try:
        config: dict[str, Any] = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"} <= config.keys()
    return config if known else None
