"""Preferences -> scores: backbone, frozen features, reward head, losses, scorer.

``reward.load(path).score(prompts, completions)`` loads a released reward model and scores with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from reward.scorer import RewardModel

__all__ = ["load"]


def load(path: str | Path) -> RewardModel:
    """Load a released reward model: ``reward.load("runs/quickstart/release/reward").score(prompts, completions)``."""
    from reward.scorer import RewardModel

    return RewardModel.load(path)
