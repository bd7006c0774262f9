"""A held-out judge: a Bradley-Terry head on another layer or another trunk, fitted on votes of evaluation users.

It sees neither the private-trained head nor its layer, so a policy that merely exploits that head's errors does not win
with it. It is no human, and is never released.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """score(features) = standardised features . weight."""

    mean: Array
    std: Array
    weight: Array

    def score(self, features: npt.NDArray[np.floating]) -> Array:
        """Scores, shape [n] from [n, hidden]."""
        scores: Array = (features.astype(np.float64) - self.mean) / self.std @ self.weight
        return scores


def fit_judge(
    chosen: npt.NDArray[np.floating], rejected: npt.NDArray[np.floating], weight_decay: float = 1e-2
) -> Judge:
    """The maximum of the Bradley-Terry likelihood (Bradley and Terry 1952) with an L2 penalty.

    Args:
        chosen: features of the preferred answers, shape [n, hidden].
        rejected: of the others, same shape.
        weight_decay: of the penalty ``weight_decay * |w|^2 / 2`` on the mean loss.

    | case | result |
    |---|---|
    | no pair | a judge that scores everything 0 |
    | a feature that is constant | ignored |
    """
    hidden = chosen.shape[1]
    if not len(chosen):
        return Judge(np.zeros(hidden), np.ones(hidden), np.zeros(hidden))
    both = np.concatenate([chosen, rejected]).astype(np.float64)
    mean, std = both.mean(0), both.std(0)
    std = np.where(std > 0, std, np.inf)
    difference = (chosen.astype(np.float64) - rejected) / std

    def loss(weight: Array) -> tuple[float, Array]:
        margin = difference @ weight
        gradient = -(difference * (1 / (1 + np.exp(margin)))[:, None]).mean(0) + weight_decay * weight
        return float(np.logaddexp(0, -margin).mean() + weight_decay * weight @ weight / 2), gradient

    with np.errstate(over="ignore"):
        found = minimize(loss, np.zeros(hidden), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return Judge(mean, std, found.x)
