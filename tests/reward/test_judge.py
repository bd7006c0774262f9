"""The held-out judge: maximum of the penalised Bradley-Terry likelihood."""

from __future__ import annotations

import numpy as np
import torch

from reward.judge import fit_judge


def pairs(n: int = 400, hidden: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=hidden)
    a, b = rng.normal(3, 2, size=(2, n, hidden))
    swap = rng.random(n) > 1 / (1 + np.exp(-(a - b) @ weight))
    return np.where(swap[:, None], b, a), np.where(swap[:, None], a, b), weight


def test_it_finds_the_direction_of_the_votes() -> None:
    chosen, rejected, weight = pairs()
    found = fit_judge(chosen, rejected)
    direction = found.weight / found.std
    assert direction @ weight / np.linalg.norm(direction) / np.linalg.norm(weight) > 0.95
    assert (found.score(chosen) > found.score(rejected)).mean() > 0.8


def test_it_is_the_optimum_that_plain_gradient_descent_finds() -> None:
    chosen, rejected, _ = pairs(60, 3)
    found = fit_judge(chosen, rejected, weight_decay=0.1)
    difference = torch.tensor((chosen - rejected) / found.std)
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):
        loss = torch.nn.functional.softplus(-difference @ weight).mean() + 0.05 * weight @ weight
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - 0.3 * gradient).detach().requires_grad_()
    np.testing.assert_allclose(found.weight, weight.detach().numpy(), atol=1e-4)


def test_no_pair_and_constant_features() -> None:
    assert fit_judge(np.zeros((0, 4)), np.zeros((0, 4))).score(np.ones((2, 4))).tolist() == [0, 0]
    chosen, rejected, _ = pairs(50, 3)
    chosen[:, 0] = rejected[:, 0] = 7
    found = fit_judge(chosen, rejected)
    assert np.isfinite(found.score(chosen)).all()
    assert found.weight[0] == 0
