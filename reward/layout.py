"""Names, shapes and initial values of what is trained on frozen features. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
MIX, HIDDEN, BIAS, SCORE = "mix.weight", "hidden.weight", "hidden.bias", "score.weight"


@dataclass(frozen=True)
class HeadLayout:
    """A linear head on ``dimension`` projected features; perhaps a hidden layer under it, a learned mix of layers under that.

    ``hidden_dim``: width of the hidden layer, None for a linear head. ``num_layers``: how many layers of the trunk are
    mixed, None for one layer without a mix.
    """

    dimension: int
    hidden_dim: int | None = None
    num_layers: int | None = None

    @property
    def shapes(self) -> Shapes:
        """Names and shapes in the order in which they are flattened into one vector."""
        d, h, layers = self.dimension, self.hidden_dim, self.num_layers
        return (
            *([(MIX, (layers, 1))] if layers else []),
            *([(HIDDEN, (h, d)), (BIAS, (h,))] if h else []),
            (SCORE, (1, h or d)),
        )

    @property
    def size(self) -> int:
        """Numbers that are trained."""
        return sum(prod(shape) for _, shape in self.shapes)

    @classmethod
    def of(cls, shapes: Sequence[tuple[str, Sequence[int]]]) -> HeadLayout:
        """The layout that has these names and shapes.

        Raises:
            ValueError: none has.
        """
        given: Mapping[str, Sequence[int]] = dict(shapes)
        try:
            h, d = given[HIDDEN] if HIDDEN in given else (None, given[SCORE][1])
            layout = cls(d, h, given[MIX][0] if MIX in given else None)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"no head has the tensors {', '.join(given) or 'of an empty list'}") from error
        if {name: tuple(shape) for name, shape in given.items()} != dict(layout.shapes):
            raise ValueError(f"no head has the tensors {', '.join(given)} in these shapes")
        return layout

    def initial(self, seed: int) -> npt.NDArray[np.float64]:
        """What training starts from, flat [size]: public, a function of layout and seed alone.

        The score layer and the mix are zero (every text scores 0, all layers weigh the same); a hidden layer's weight and bias
        are standard normal, so that its units differ and, on features of expected squared norm 1, are neither linear nor
        saturated.
        """
        rng = np.random.default_rng(seed)
        parts = [
            rng.standard_normal(prod(shape)) if name in {HIDDEN, BIAS} else np.zeros(prod(shape))
            for name, shape in self.shapes
        ]
        return np.concatenate(parts)

    def split(self, flat: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.floating]]:
        """A flat vector [size] -> its tensors by name.

        Raises:
            ValueError: another number of entries.
        """
        if flat.size != self.size:
            raise ValueError(f"{flat.size} numbers for a head of {self.size}")
        ends = np.cumsum([prod(shape) for _, shape in self.shapes])[:-1]
        pieces = np.split(flat.reshape(-1), ends)
        return {name: piece.reshape(shape) for (name, shape), piece in zip(self.shapes, pieces, strict=True)}
