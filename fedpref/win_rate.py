"""Win rates of a policy over its base model, raw and length-controlled, with intervals by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Vector = npt.NDArray[np.float64]


def prompt_bootstrap(
    statistic: Callable[[npt.NDArray[np.int64]], float], num_prompts: int, samples: int, seed: int
) -> tuple[float, float] | None:
    """95 % bootstrap interval of a statistic of prompts, drawing whole prompts; None with fewer than two."""
    if num_prompts < 2:
        return None
    draws = np.random.default_rng(seed).integers(num_prompts, size=(samples, num_prompts))
    low, high = np.percentile([statistic(draw) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def length_controlled(won: Vector, longer: Vector) -> float:
    """The win rate that a logistic model gives to two answers of the same length (Dubois et al. 2024, eq. 2).

    logit P(win) = a + b * tanh(difference of lengths / its standard deviation); the answer is expit(a). A weak ridge keeps
    it finite where everything is won.

    Args:
        won: 1, 0 or 0.5, any shape.
        longer: the policy's length minus the base model's, same shape.

    | case | result |
    |---|---|
    | empty | NaN |
    | all lengths equal | the raw win rate, up to the ridge |
    """
    y, difference = won.ravel(), longer.ravel()
    if not len(y):
        return float("nan")
    spread = difference.std()
    x = np.stack([np.ones_like(y), np.tanh(difference / spread) if spread > 0 else np.zeros_like(y)])
    theta = np.zeros(2)
    for _ in range(50):
        p = expit(theta @ x)
        gradient = x @ (y - p) - 1e-2 * theta
        hessian = (x * (p * (1 - p))) @ x.T + 1e-2 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta = theta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return float(expit(theta[0]))


def win_table(won: Vector, longer: Vector, topics: Sequence[str], samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Raw and length-controlled win rate over prompts, per topic, and the worst topic.

    Args:
        won: shape [prompts, n, m], from ``policy.evaluate.wins``.
        longer: the policy's length minus the base model's, shape [prompts, n, m].
        topics: one per prompt.
        samples: of the bootstrap, which draws prompts.

    | case | result |
    |---|---|
    | no prompt | ``{"prompts": 0}`` |
    | one prompt | figures without interval (`null`) |
    """
    if not len(won):
        return {"prompts": 0}
    rate = won.mean((1, 2))
    by_topic = {t: float(rate[np.array(topics) == t].mean()) for t in sorted(set(topics)) if len(set(topics)) > 1}
    return {
        "prompts": len(won),
        "comparisons": int(won.size),
        "win_rate": float(rate.mean()),
        "interval": prompt_bootstrap(lambda i: float(rate[i].mean()), len(won), samples, seed),
        "length_controlled_win_rate": length_controlled(won, longer),
        "length_controlled_interval": prompt_bootstrap(
            lambda i: length_controlled(won[i], longer[i]), len(won), samples, seed
        ),
        "topics": by_topic,
        "worst_topic": min(by_topic, key=by_topic.__getitem__) if by_topic else None,
    }


def paired_means(policy: Vector, base: Vector, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """A figure of the policy and of its base model on the same prompts, and their difference.

    Args:
        policy: per prompt, shape [prompts]; NaN where the figure does not apply.
        base: the same of the base model.
    """
    applies = np.isfinite(policy) & np.isfinite(base)
    policy, base = policy[applies], base[applies]
    if not len(policy):
        return {"prompts": 0}
    difference = policy - base
    intervals = {
        name: prompt_bootstrap(lambda i, v=values: float(v[i].mean()), len(values), samples, seed)  # type: ignore[misc]
        for name, values in (("base", base), ("policy", policy), ("difference", difference))
    }
    return {
        "prompts": len(policy),
        "base": float(base.mean()),
        "base_interval": intervals["base"],
        "policy": float(policy.mean()),
        "policy_interval": intervals["policy"],
        "difference": float(difference.mean()),
        "difference_interval": intervals["difference"],
    }
