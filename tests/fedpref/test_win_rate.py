"""Win rates against their definition: raw, length-controlled, intervals by prompt."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from fedpref.win_rate import length_controlled, paired_means, prompt_bootstrap, win_table


def simulated(prompts: int, bias: float, per_token: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Wins that depend on quality (``bias``) and on length, of 4 x 4 completions a prompt."""
    rng = np.random.default_rng(seed)
    longer = rng.normal(10, 20, size=(prompts, 4, 4))
    chance = expit(bias + per_token * np.tanh(longer / longer.std()))
    return (rng.random(longer.shape) < chance).astype(float), longer


def test_a_judge_that_only_likes_length_gives_no_win() -> None:
    won, longer = simulated(400, bias=0.0, per_token=3.0)
    assert won.mean() > 0.6
    assert abs(length_controlled(won, longer) - 0.5) < 0.02


def test_quality_is_kept() -> None:
    won, longer = simulated(400, bias=1.0, per_token=3.0)
    assert abs(length_controlled(won, longer) - expit(1.0)) < 0.02


def test_newton_finds_the_ridge_optimum() -> None:
    won, longer = simulated(20, bias=0.4, per_token=1.0, seed=3)
    t = np.tanh(longer / longer.std()).ravel()

    def loss(theta: np.ndarray) -> float:
        margin = theta[0] + theta[1] * t
        return float(np.logaddexp(0, margin).sum() - won.ravel() @ margin + 0.5e-2 * theta @ theta)

    slow = minimize(loss, np.zeros(2), tol=1e-12).x
    assert length_controlled(won, longer) == pytest.approx(expit(slow[0]), abs=1e-5)


@pytest.mark.parametrize("won", [1.0, 0.5, 0.0])
def test_extremes_stay_finite(won: float) -> None:
    value = length_controlled(np.full((3, 2, 2), won), np.zeros((3, 2, 2)))
    assert value == pytest.approx(won, abs=0.01)


def test_the_table_names_the_worst_topic_and_draws_prompts() -> None:
    won = np.zeros((4, 2, 2))
    won[:2] = 1
    table = win_table(won, np.zeros_like(won), ["a", "a", "b", "b"], samples=500)
    assert (table["prompts"], table["comparisons"], table["win_rate"]) == (4, 16, 0.5)
    assert table["topics"] == {"a": 1.0, "b": 0.0}
    assert table["worst_topic"] == "b"
    assert table["interval"] == (0.0, 1.0)  # of two prompts won and two lost, drawn whole


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(5), 0
    for trial in range(200):
        values = rng.random(40)
        low, high = prompt_bootstrap(lambda i, v=values: float(v[i].mean()), 40, 300, trial) or (1, 0)  # type: ignore[misc]
        hits += low <= 0.5 <= high
    assert 176 <= hits <= 199  # 95 % of 200, false-alarm rate below 1e-3 for 0.93


def test_no_prompt_and_one_prompt() -> None:
    empty = np.zeros((0, 2, 2))
    assert win_table(empty, empty, []) == {"prompts": 0}
    one = win_table(np.ones((1, 2, 2)), np.zeros((1, 2, 2)), ["a"])
    assert (one["interval"], one["worst_topic"]) == (None, None)
    assert paired_means(np.full(3, np.nan), np.ones(3)) == {"prompts": 0}


def test_paired_means_compare_the_same_prompts() -> None:
    means = paired_means(np.array([1.0, 2.0, np.nan]), np.array([0.5, 1.0, 9.0]))
    assert (means["prompts"], means["base"], means["policy"], means["difference"]) == (2, 0.75, 1.5, 0.75)
