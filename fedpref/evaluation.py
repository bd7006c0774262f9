"""Reward accuracy on evaluation users: seen and unseen topics, per topic, worst topic, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpref.data.people import is_named
from fedpref.data.preferences import Preferences
from reward.evaluate import pair_correct
from reward.pairs import Conversation

Vector = npt.NDArray[np.float64]
Scores = Callable[[Sequence[Conversation]], Vector]


def correctness(data: Preferences, scores: Scores) -> tuple[Vector, Vector]:
    """Per record: is the chosen answer scored higher, and is it longer (in characters); both [n]."""
    texts = list(data.texts)
    used = np.unique(np.concatenate([data.chosen, data.rejected])) if len(data) else np.zeros(0, dtype=np.int64)
    values = np.full(len(texts), np.nan)
    values[used] = scores([texts[i] for i in used])
    length = np.array([len(text.completion) for text in texts], dtype=np.float64)
    return (
        pair_correct(values[data.chosen], values[data.rejected]),
        pair_correct(length[data.chosen], length[data.rejected]),
    )


def interval(values: Vector, cluster: npt.NDArray[Any], samples: int, seed: int) -> tuple[float, float] | None:
    """95 % bootstrap interval of a mean, drawing whole clusters (users); None with fewer than two clusters."""
    _, owner = np.unique(cluster, return_inverse=True)
    total, count = np.bincount(owner, weights=values), np.bincount(owner).astype(np.float64)
    if len(total) < 2:
        return None
    draws = np.random.default_rng(seed).multinomial(len(total), np.full(len(total), 1 / len(total)), size=samples)
    means = (draws @ total) / (draws @ count)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(correct: Vector, longer: Vector, data: Preferences, samples: int, seed: int) -> dict[str, Any]:
    """Accuracy with interval, longer-is-better, their difference with interval, per topic, worst topic.

    | records | result |
    |---|---|
    | none | `{"pairs": 0}` |
    | one user, or one vote in a topic | figures without interval (`null`) |
    """
    if not len(correct):
        return {"pairs": 0}
    topics: dict[str, dict[str, Any]] = {}
    for topic in np.unique(data.topic) if len(np.unique(data.topic)) > 1 else []:
        of = data.topic == topic
        topics[str(topic)] = {
            "pairs": int(of.sum()),
            "reward_accuracy": float(correct[of].mean()),
            "interval": interval(correct[of], data.user[of], samples, seed),
            "longer_is_better": float(longer[of].mean()),
        }
    worst = min(topics, key=lambda t: topics[t]["reward_accuracy"]) if topics else None
    return {
        "pairs": len(correct),
        "users": len(np.unique(data.user)) if any(map(is_named, data.user.tolist())) else None,
        "reward_accuracy": float(correct.mean()),
        "interval": interval(correct, data.user, samples, seed),
        "longer_is_better": float(longer.mean()),
        "over_longer_is_better": float((correct - longer).mean()),
        "over_longer_is_better_interval": interval(correct - longer, data.user, samples, seed),
        "worst_topic": worst,
        "topics": topics,
    }


def evaluate(data: Preferences, scores: Scores, samples: int, seed: int) -> dict[str, Any]:
    """``summarise`` for scores computed here."""
    correct, longer = correctness(data, scores)
    return summarise(correct, longer, data, samples, seed)
