"""A linear reward head on standardised, projected features; all but the head's weight comes from public text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from reward.errors import PublicDataError
from reward.losses import bradley_terry, debiased_bradley_terry
from reward.pairs import FeaturePairs

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PublicProjection:
    """Standardise with public mean and deviation, then project on public principal components.

    ``mean``, ``std`` [hidden]; ``components`` [hidden, d], scaled so that a public text has expected squared norm 1.
    """

    mean: Array
    std: Array
    components: Array

    @classmethod
    def fit(cls, public_features: Array, dimension: int) -> PublicProjection:
        """Fit on features of public texts, shape [texts, hidden].

        Raises:
            PublicDataError: fewer finite public texts than twice the dimension, a dimension above the hidden size, or
                texts that do not differ.
        """
        rows = public_features[np.isfinite(public_features).all(axis=1)].astype(np.float64)
        if len(rows) < 2 * dimension or dimension > rows.shape[1] or not (rows.std(axis=0) > 1e-6).any():
            raise PublicDataError(
                f"{len(rows)} public texts of width {public_features.shape[1]} give no {dimension}-d projection.",
                "It takes at least two texts per dimension that differ, and no more dimensions than features.",
                "Add public texts (`fedpref data complete`) or lower reward.projection_dim.",
            )
        mean, std = rows.mean(axis=0), rows.std(axis=0) + 1e-6
        standard = (rows - mean) / std
        components = np.linalg.svd(standard, full_matrices=False)[2][:dimension].T
        scale = np.sqrt(np.square(standard @ components).sum(axis=1).mean())
        return cls(mean.astype(np.float32), std.astype(np.float32), (components / scale).astype(np.float32))

    def __call__(self, features: Array) -> Array:
        """Shape [n, hidden] -> [n, d].

        | row | result |
        |---|---|
        | none | shape [0, d] |
        | the public mean | zeros |
        | a feature that did not vary in public text | divided by 1e-6, hence large if it varies here; clipping bounds it |
        | NaN or inf | NaN or inf; clipping drops that unit |
        """
        return np.asarray((features - self.mean) / self.std @ self.components, dtype=np.float32)


class RewardHead(nn.Module):
    """r(x) = w . x, without a bias (it cancels in every pair). The trainable part is ``score.weight``, [1, d]."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.score = nn.Linear(dimension, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Scores, shape [n] from [n, d]."""
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


def set_weight(head: RewardHead, weight: npt.NDArray[np.float64]) -> None:
    """Overwrite the head's weight by a flat vector [d]."""
    with torch.no_grad():
        head.score.weight.copy_(torch.from_numpy(weight).reshape(1, -1))
