"""A reward head on standardised, projected features of one layer or several; all but what it trains comes from public text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from reward.errors import PublicDataError
from reward.layout import HeadLayout
from reward.losses import bradley_terry, debiased_bradley_terry
from reward.pairs import FeaturePairs

Array = npt.NDArray[np.float32]
_STANDARDISED = 30  # public texts; the deviation of fewer is off by more than an eighth


@dataclass(frozen=True)
class PublicProjection:
    """Standardise with public mean and deviation, then project on public principal components.

    ``mean``, ``std`` [hidden], or [layers, hidden]: each layer is standardised by itself; ``components`` [hidden, d], the same
    for all layers, because only numbers along the same directions can be mixed; scaled so that a public text has expected
    squared norm 1 (the plain mean of its layers has).
    """

    mean: Array
    std: Array
    components: Array

    @classmethod
    def fit(cls, public_features: Array, dimension: int) -> PublicProjection:
        """Fit on features of public texts, shape [texts, hidden] or [texts, layers, hidden].

        Of several layers the components are those of all layers' rows together. Where ``dimension`` is the hidden size nothing
        is left out: the standardised features themselves, scaled.

        Raises:
            PublicDataError: fewer finite public texts than twice the dimension (at full width: than 30), a dimension above
                the hidden size, or texts that do not differ.
        """
        hidden = public_features.shape[-1]
        finite = np.isfinite(public_features).all(axis=tuple(range(1, public_features.ndim)))
        rows = public_features[finite].astype(np.float64)
        needed = _STANDARDISED if dimension == hidden else 2 * dimension
        if len(rows) < needed or dimension > hidden or not (rows.std(axis=0) > 1e-6).any():
            raise PublicDataError(
                f"{len(rows)} public texts of width {hidden} give no {dimension}-d projection.",
                "It takes at least two texts per dimension that differ (30 at full width), and no more dimensions "
                "than features.",
                "Add public texts (`fedpref data complete`) or lower reward.projection_dim.",
            )
        mean, std = rows.mean(axis=0), rows.std(axis=0) + 1e-6
        standard = (rows - mean) / std
        components = np.eye(hidden) if dimension == hidden else _principal(standard.reshape(-1, hidden), dimension)
        mixed = standard if standard.ndim == 2 else standard.mean(axis=1)
        scale = np.sqrt(np.square(mixed @ components).sum(axis=1).mean())
        return cls(mean.astype(np.float32), std.astype(np.float32), (components / scale).astype(np.float32))

    def __call__(self, features: Array) -> Array:
        """Shape [n, hidden] -> [n, d], [n, layers, hidden] -> [n, layers, d].

        | row | result |
        |---|---|
        | none | shape [0, d] |
        | the public mean | zeros |
        | a feature that did not vary in public text | divided by 1e-6, hence large if it varies here; clipping bounds it |
        | NaN or inf | NaN or inf; clipping drops that unit |
        """
        return np.asarray((features - self.mean) / self.std @ self.components, dtype=np.float32)


def _principal(rows: npt.NDArray[np.float64], dimension: int) -> npt.NDArray[np.float64]:
    components: npt.NDArray[np.float64] = np.linalg.svd(rows, full_matrices=False)[2][:dimension].T
    return components


class RewardHead(nn.Module):
    """r(x) = w . f(x), without a bias (it cancels in every pair).

    f(x) = x for a linear head, tanh(W x + b) / sqrt(h) for one with ``hidden_dim`` h; the root keeps the scale that clipping
    and learning rate are set for. With ``num_layers`` x is the sum of the layers' projected features, weighted by
    softmax(a) (Peters et al. 2018, eq. 1; their factor gamma is part of w). All that is trained is the weight or bias of
    linear layers, so that gradients per unit take one pass: the mix is one on a constant 1.
    """

    def __init__(self, dimension: int, hidden_dim: int | None = None, num_layers: int | None = None) -> None:
        super().__init__()
        self.layout = HeadLayout(dimension, hidden_dim, num_layers)
        self.mix = nn.Linear(1, num_layers, bias=False) if num_layers else None
        self.hidden = nn.Linear(dimension, hidden_dim) if hidden_dim else None
        self.score = nn.Linear(hidden_dim or dimension, 1, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)  # values come with every round

    @classmethod
    def of(cls, shapes: Sequence[tuple[str, Sequence[int]]]) -> RewardHead:
        """The head with these trainable tensors.

        Raises:
            ValueError: no head has them.
        """
        layout = HeadLayout.of(shapes)
        return cls(layout.dimension, layout.hidden_dim, layout.num_layers)

    def forward(self, features: Tensor) -> Tensor:
        """Scores, shape [n] from [n, d], or [n, layers, d] for a head that mixes layers."""
        if self.mix is not None:
            weights = self.mix(features.new_ones(len(features), 1)).softmax(dim=1)
            features = (weights[:, :, None] * features).sum(dim=1)
        if self.hidden is not None:
            features = self.hidden(features).tanh() / self.hidden.out_features**0.5
        scores: Tensor = self.score(features).squeeze(-1)
        return scores


def bradley_terry_objective(head: RewardHead, batch: FeaturePairs) -> Tensor:
    """Weighted Bradley-Terry loss of every pair, shape [n]."""
    return batch.weight * bradley_terry(head(batch.chosen), head(batch.rejected))


def debiased_objective(flip_probability: float) -> Callable[[RewardHead, FeaturePairs], Tensor]:
    """The weighted Bradley-Terry loss for labels under randomised response, shape [n]."""

    def objective(head: RewardHead, batch: FeaturePairs) -> Tensor:
        scores = head(batch.chosen), head(batch.rejected)
        return batch.weight * debiased_bradley_terry(*scores, flip_probability)

    return objective


def set_weight(head: RewardHead, weight: npt.NDArray[np.floating]) -> None:
    """Overwrite all that a head trains by a flat vector [size], in the order of its layout."""
    tensors = head.layout.split(weight)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(tensors[name])))
