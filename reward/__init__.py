"""Preferences -> scores: backbone, frozen features, reward head, losses, scorer.

``reward.load(path).score(prompts, completions)`` loads a released reward model and scores with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reward.scorer import Scorer

__all__ = ["load"]


def load(path: str | Path, say: Callable[[str], None] = lambda _: None) -> Scorer:
    """Load a released reward model: ``reward.load("runs/quickstart/release/reward").score(prompts, completions)``.

    Args:
        path: a folder ``release/reward``, of a head on frozen features or of a LoRA reward model.
        say: told what happens, a line at a time.

    Raises:
        RewardModelError, ModelNotFoundError: see ``RewardModel.load`` and ``LoraRewardModel.load``.
    """
    from pathlib import Path

    from reward.lora_scorer import LoraRewardModel
    from reward.scorer import RewardModel

    is_adapter = (Path(path) / "adapter_config.json").exists()
    return LoraRewardModel.load(path, say) if is_adapter else RewardModel.load(path, say)
