"""Projection from public text alone; a linear head; the Bradley-Terry loss is TRL's."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from reward.errors import PublicDataError
from reward.evaluate import pair_correct
from reward.head import PublicProjection, RewardHead, bradley_terry_objective, set_weight
from reward.losses import bradley_terry
from reward.pairs import FeaturePairs

HIDDEN, D = 12, 4


def public_features(n: int = 60, seed: int = 0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.1, 30.0, HIDDEN)
    return np.asarray(rng.normal(size=(n, HIDDEN)) @ rng.normal(size=(HIDDEN, HIDDEN)) * scale + 5, dtype=np.float32)


# Projection.


def test_a_public_text_has_expected_squared_norm_one() -> None:
    for dimension in (1, D, HIDDEN):
        public = public_features()
        projected = PublicProjection.fit(public, dimension)(public)
        assert projected.shape == (60, dimension)
        assert np.square(projected).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-3)
        np.testing.assert_allclose(projected.mean(axis=0), 0.0, atol=1e-4)


def test_the_components_are_principal_and_uncorrelated() -> None:
    public = public_features()
    projected = PublicProjection.fit(public, D)(public).astype(np.float64)
    covariance = projected.T @ projected / len(projected)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 1e-4
    assert (np.diff(np.diag(covariance)) <= 0).all()
    standard = (public - public.mean(0)) / public.std(0)
    share = np.linalg.svd(standard, compute_uv=False)[:D]
    np.testing.assert_allclose(np.diag(covariance) / np.diag(covariance)[0], (share / share[0]) ** 2, rtol=1e-3)


def test_the_scale_of_single_features_does_not_matter() -> None:
    public = public_features()
    scales = np.linspace(0.01, 100, HIDDEN).astype(np.float32)
    one = PublicProjection.fit(public, D)(public)
    two = PublicProjection.fit(public * scales, D)(public * scales)
    np.testing.assert_allclose(np.abs(one), np.abs(two), atol=2e-3)


def test_it_is_fixed_by_the_public_text_and_moves_each_text_alone() -> None:
    projection = PublicProjection.fit(public_features(), D)
    private = public_features(9, seed=1)
    before = [a.copy() for a in (projection.mean, projection.std, projection.components)]
    projected = projection(private)
    other = private.copy()
    other[3:] = 1e6
    assert np.array_equal(projection(other)[:3], projected[:3])
    for a, b in zip(before, (projection.mean, projection.std, projection.components), strict=True):
        assert np.array_equal(a, b)


def test_public_texts_that_are_not_finite_are_left_out() -> None:
    public = public_features()
    broken = np.vstack([public[:30], np.full((2, HIDDEN), np.nan), public[30:], np.full((1, HIDDEN), np.inf)])
    clean = PublicProjection.fit(public, D)
    assert np.array_equal(PublicProjection.fit(broken.astype(np.float32), D).components, clean.components)


def test_the_order_of_public_texts_does_not_matter() -> None:
    public, private = public_features(), public_features(5, seed=1)
    one = PublicProjection.fit(public, D)(private)
    np.testing.assert_allclose(np.abs(PublicProjection.fit(public[::-1].copy(), D)(private)), np.abs(one), atol=1e-3)


@pytest.mark.parametrize(("n", "dimension"), [(0, 1), (7, 4), (60, HIDDEN + 1), (1, 1)])
def test_too_little_public_text_is_coded(n: int, dimension: int) -> None:
    with pytest.raises(PublicDataError) as caught:
        PublicProjection.fit(public_features(60)[:n], dimension)
    assert caught.value.code == "FP311"
    assert "reward.projection_dim" in caught.value.fix


def test_public_texts_that_are_all_the_same_are_coded() -> None:
    with pytest.raises(PublicDataError):
        PublicProjection.fit(np.repeat(public_features(1), 50, axis=0), D)


def test_a_constant_feature_is_no_division_by_zero() -> None:
    public = public_features()
    public[:, 2] = 3.0
    assert np.isfinite(PublicProjection.fit(public, D)(public)).all()


# Head.


def test_the_head_is_linear_and_starts_at_zero() -> None:
    head, x = RewardHead(D), torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    assert head(x).shape == (5,)
    assert head(x).abs().max() == 0
    weight = np.arange(D, dtype=np.float64)
    set_weight(head, weight)
    torch.testing.assert_close(head(x), x @ torch.arange(D, dtype=torch.float32))
    assert dict(head.named_parameters()).keys() == {"score.weight"}


# Loss.


def trl_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """The line of TRL's RewardTrainer, word for word."""
    return -functional.logsigmoid(chosen - rejected).mean()


def test_the_loss_is_trls() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(50, generator=generator, dtype=torch.float64) * 5 for _ in range(2))
    torch.testing.assert_close(bradley_terry(chosen, rejected).mean(), trl_loss(chosen, rejected))
    torch.testing.assert_close(bradley_terry(chosen, rejected), torch.log1p(torch.exp(rejected - chosen)))


def test_trl_still_computes_that_line() -> None:
    """The oracle above is copied; this finds out when TRL's own line changes."""
    from trl.trainer import reward_trainer

    tree = ast.unparse(ast.parse(inspect.getsource(reward_trainer)))
    assert "-nn.functional.logsigmoid(rewards_chosen - rewards_rejected).mean()" in tree


def test_the_loss_has_the_gradient_of_its_formula_and_stays_finite() -> None:
    margin = torch.tensor([-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4], dtype=torch.float64, requires_grad=True)
    loss = bradley_terry(margin, torch.zeros_like(margin))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss).all()
    torch.testing.assert_close(margin.grad, -torch.sigmoid(-margin.detach()))
    assert loss[3].item() == pytest.approx(np.log(2))


def test_the_objective_weighs_records_and_does_not_couple_them() -> None:
    generator = torch.Generator().manual_seed(1)
    head = RewardHead(D)
    set_weight(head, np.linspace(-1, 1, D))
    chosen, rejected = (torch.randn(6, D, generator=generator) for _ in range(2))
    weight = torch.rand(6, generator=generator)
    unit = torch.arange(6)
    losses = bradley_terry_objective(head, FeaturePairs(chosen, rejected, weight, unit))
    torch.testing.assert_close(losses, weight * bradley_terry(head(chosen), head(rejected)))
    alone = [
        bradley_terry_objective(head, FeaturePairs(chosen[i : i + 1], rejected[i : i + 1], weight[i : i + 1], unit[:1]))
        for i in range(6)
    ]
    torch.testing.assert_close(losses, torch.cat(alone))


# Figures.


def test_a_pair_is_right_wrong_or_a_tie() -> None:
    chosen = np.array([2.0, 1.0, 1.0, np.nan, 1.0, np.inf, -np.inf, np.inf])
    rejected = np.array([1.0, 2.0, 1.0, 1.0, np.nan, 1.0, 1.0, np.inf])
    assert pair_correct(chosen, rejected).tolist() == [1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert pair_correct(np.zeros(0), np.zeros(0)).shape == (0,)


@given(hnp.arrays(np.float64, 8), hnp.arrays(np.float64, 8))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_swapping_the_answers_swaps_right_and_wrong(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        assert np.array_equal(pair_correct(a, b), 1.0 - pair_correct(b, a))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_loss_is_positive_and_falls_with_the_margin(margins: list[float]) -> None:
    ordered = torch.tensor(sorted(margins), dtype=torch.float64)
    losses = bradley_terry(ordered, torch.zeros_like(ordered))
    assert (losses >= 0).all()
    assert (losses.diff() <= 1e-12).all()


def test_the_edges_of_a_projection() -> None:
    public = np.random.default_rng(3).normal(size=(40, HIDDEN)).astype(np.float32)
    public[:, 2] = 5.0  # never varies in public text
    projection = PublicProjection.fit(public, D)
    assert projection(np.zeros((0, HIDDEN), np.float32)).shape == (0, D)
    np.testing.assert_array_equal(projection(projection.mean[None]), np.zeros((1, D), np.float32))
    varies = projection.mean.copy()
    varies[2] += 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isfinite(projection(varies[None])).all()
        for bad in (np.nan, np.inf):
            row = projection.mean.copy()
            row[0] = bad
            assert not np.isfinite(projection(np.stack([row, projection.mean]))[0]).any()
            assert np.isfinite(projection(np.stack([row, projection.mean]))[1]).all()
