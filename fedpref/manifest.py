"""The layout of the trainable part: names, shapes, order, and a digest that both sides of a round compare."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod

from privacy.events import canonical


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


def reward_head_manifest(dimension: int) -> Manifest:
    """The linear reward head on d projected features."""
    return Manifest((("score.weight", (1, dimension)),))
