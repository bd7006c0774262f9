"""The layout of the trainable part: names, shapes, order, and a digest that both sides of a round compare."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod

from fedpref.config import RewardConfig
from privacy.events import canonical
from reward.layout import HeadLayout


@dataclass(frozen=True)
class Manifest:
    """Names and shapes in the order in which they are flattened into one vector."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def dimension(self) -> int:
        """Numbers in the flat vector."""
        return sum(prod(shape) for _, shape in self.tensors)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of names and shapes."""
        return hashlib.sha256(canonical([[name, list(shape)] for name, shape in self.tensors]).encode()).hexdigest()


def reward_manifest(config: RewardConfig) -> Manifest:
    """What a recipe's ``reward`` block trains."""
    return Manifest(reward_layout(config).shapes)


def reward_layout(config: RewardConfig) -> HeadLayout:
    """The head of a recipe's ``reward`` block."""
    return HeadLayout(
        config.projection_dim,
        config.mlp_hidden_dim if config.trainable == "mlp_head" else None,
        None if config.layers is None else len(config.layers),
    )
