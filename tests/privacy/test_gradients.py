"""Gradients per privacy unit: equal to a loop of single-unit backward passes, and bounded per unit after clipping."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.clipping import clip_and_sum
from privacy.gradients import RowMapError, UncoveredParameterError, per_unit_gradients
from reward.head import RewardHead, bradley_terry_objective
from reward.pairs import FeaturePairs
from tests.privacy.books import REPEATABLE

Objective = Callable[[Any, Any], Tensor]


class Mlp(nn.Module):
    """Two linear layers without bias, on vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 5, bias=False), nn.Linear(5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.second(torch.tanh(self.first(x))).squeeze(-1)
        return scores


class Sequence(nn.Module):
    """Linear layers at every position of a sequence [rows, positions, width], then a mean over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 5, bias=False), nn.Linear(5, 3, bias=False)
        self.score = nn.Linear(3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(torch.tanh(self.first(x)))
        scores: Tensor = self.score(torch.tanh(hidden).mean(dim=1)).squeeze(-1)
        return scores


SHAPES: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "reward head": (RewardHead, (6,)),
    "mlp head": (lambda width: RewardHead(width, 4), (6,)),
    "mixed layers": (lambda width: RewardHead(width, None, 3), (3, 6)),
    "mlp head on mixed layers": (lambda width: RewardHead(width, 4, 2), (2, 6)),
    "mlp": (Mlp, (6,)),
    "sequence": (Sequence, (4, 6)),
}
# fp64 and fp32 tolerances that the docstring promises, relative to the largest entry
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


@dataclass(frozen=True)
class Case:
    model: nn.Module
    batch: FeaturePairs
    num_units: int

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())


def pairs(
    shape: tuple[int, ...], row_unit: list[int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> FeaturePairs:
    generator = torch.Generator().manual_seed(seed)
    n = len(row_unit)

    def values(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    weight = torch.rand(n, generator=generator, dtype=torch.float64).to(dtype) + 0.5
    return FeaturePairs(values(n, *shape), values(n, *shape), weight, torch.tensor(row_unit, dtype=torch.int64))


def randomised(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    model = model.to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def case(kind: str, row_unit: list[int], num_units: int, dtype: torch.dtype = torch.float64) -> Case:
    make, shape = SHAPES[kind]
    return Case(randomised(make(shape[-1]), dtype), pairs(shape, row_unit, dtype), num_units)


def only(batch: FeaturePairs, keep: Tensor) -> FeaturePairs:
    return FeaturePairs(batch.chosen[keep], batch.rejected[keep], batch.weight[keep], batch.row_unit[keep])


def by_loop(c: Case, objective: Objective = bradley_terry_objective) -> Tensor:
    """The definition: one ordinary backward pass for each unit."""
    rows = []
    parameters = list(c.trainable.values())
    for unit in range(c.num_units):
        mine = c.batch.row_unit == unit
        if not mine.any():
            rows.append(torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype))
            continue
        gradients = torch.autograd.grad(objective(c.model, only(c.batch, mine)).sum(), parameters)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


def ours(c: Case, objective: Objective = bradley_terry_objective) -> Tensor:
    return per_unit_gradients(c.model, objective, c.batch, c.num_units, c.trainable)


RAGGED = {
    "a row each": ([0, 1, 2, 3, 4], 5),
    "ragged users": ([2, 0, 2, 2, 4, 0, 2, 1, 4, 2], 6),  # unit 3 and 5 have no row
    "one user": ([0, 0, 0], 1),
    "one row": ([1], 3),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("users", RAGGED)
@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_equal_a_loop_of_single_unit_backward_passes(kind: str, users: str, dtype: torch.dtype) -> None:
    c = case(kind, *RAGGED[users], dtype)
    expected = by_loop(c)
    assert ours(c).dtype == dtype
    assert (ours(c) - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("kind", SHAPES)
def test_no_rows_give_zeros_without_running_the_model(kind: str) -> None:
    def never(model: nn.Module, batch: FeaturePairs) -> Tensor:
        raise AssertionError("the model ran")

    c = case(kind, [], 4)
    gradients = ours(c, never)
    assert gradients.shape == (4, sum(p.numel() for p in c.trainable.values()))
    assert not gradients.any()
    assert ours(Case(c.model, c.batch, 0), never).shape[0] == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
@settings(REPEATABLE, max_examples=25)
def test_units_partition_the_gradient_of_the_whole_batch(row_unit: list[int]) -> None:
    c = case("mlp", row_unit, 5)
    whole = torch.autograd.grad(bradley_terry_objective(c.model, c.batch).sum(), list(c.trainable.values()))  # type: ignore[arg-type]
    flat = torch.cat([g.flatten() for g in whole])
    gradients = ours(c)
    torch.testing.assert_close(gradients.sum(dim=0), flat, rtol=1e-12, atol=1e-12)
    for unit in set(range(5)) - set(row_unit):
        assert not gradients[unit].any()


def test_columns_follow_the_order_of_the_trainable_tensors() -> None:
    c = case("mlp", [0, 1, 0], 2)
    names = list(c.trainable)
    backwards = {name: c.trainable[name] for name in reversed(names)}
    sizes = [c.trainable[name].numel() for name in names]
    first, second = ours(c).split(sizes, dim=1)
    reordered = per_unit_gradients(c.model, bradley_terry_objective, c.batch, 2, backwards)
    torch.testing.assert_close(reordered, torch.cat([second, first], dim=1), rtol=0, atol=0)


def test_a_part_of_the_tensors_can_be_trained_alone() -> None:
    c = case("mlp", [0, 1, 0], 2)
    c.trainable["first.weight"].requires_grad_(False)
    alone = {"second.weight": c.trainable["second.weight"]}
    gradients = per_unit_gradients(c.model, bradley_terry_objective, c.batch, 2, alone)
    c.trainable["first.weight"].requires_grad_(True)
    torch.testing.assert_close(gradients, by_loop(c)[:, -5:], rtol=1e-12, atol=1e-12)


def test_a_frozen_bias_takes_part_in_the_forward_pass() -> None:
    model = randomised(nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), torch.float64)
    bias = dict(model.named_parameters())["0.bias"].requires_grad_(False)
    batch = pairs((6,), [0, 1, 1])

    def squared(m: Any, b: FeaturePairs) -> Tensor:
        loss: Tensor = m(b.chosen) ** 2
        return loss

    weight = {"0.weight": dict(model.named_parameters())["0.weight"]}
    gradients = per_unit_gradients(model, squared, batch, 2, weight)
    scores = batch.chosen @ weight["0.weight"][0] + bias
    expected = torch.zeros(2, 6, dtype=torch.float64).index_add(
        0, batch.row_unit, (2 * scores[:, None] * batch.chosen).detach()
    )
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)


def reward_case(chosen: Tensor, rejected: Tensor, row_unit: list[int]) -> Case:
    ones = torch.ones(len(chosen), dtype=chosen.dtype)
    head = RewardHead(chosen.shape[1]).to(chosen.dtype)
    batch = FeaturePairs(chosen, rejected, ones, torch.tensor(row_unit))
    return Case(head, batch, max(row_unit) + 1)


def norms_after_clipping(gradients: Tensor, bound: float) -> list[float]:
    """The norm of every unit's clipped contribution."""
    values = gradients.detach().numpy()
    sums = clip_and_sum(values, np.arange(len(values)), len(values), bound)
    return [math.sqrt(math.fsum(x * x for x in s.value.tolist())) for s in sums]


def test_a_pair_contributes_at_most_c_where_clipping_its_rows_would_give_more() -> None:
    """Planted bug: rows clipped instead of pairs (guarantees.md rule 1: one pair then contributes up to 2 C)."""
    generator = torch.Generator().manual_seed(5)
    chosen = 9 * torch.randn(20, 8, generator=generator, dtype=torch.float64)
    rejected = -chosen + torch.randn(20, 8, generator=generator, dtype=torch.float64)
    c = reward_case(chosen, rejected, list(range(20)))
    contributions = norms_after_clipping(ours(c), 1.0)
    assert max(contributions) <= 1.0
    slope = -0.5  # derivative of the loss of a pair whose scores are equal
    rows = torch.stack([slope * chosen, -slope * rejected], dim=1)  # what each answer alone adds to the gradient
    torch.testing.assert_close(rows.sum(dim=1), ours(c), rtol=1e-12, atol=1e-12)
    clipped_rows = rows / rows.norm(dim=2, keepdim=True).clamp(min=1.0)
    assert clipped_rows.sum(dim=1).norm(dim=1).max() > 1.5  # the bug


def test_a_user_contributes_at_most_c_however_many_pairs_it_has() -> None:
    """Planted bug: pairs clipped instead of users."""
    generator = torch.Generator().manual_seed(6)
    chosen = torch.randn(30, 8, generator=generator, dtype=torch.float64) + 5
    rejected = torch.randn(30, 8, generator=generator, dtype=torch.float64) - 5
    per_user = reward_case(chosen, rejected, [0] * 29 + [1])
    assert max(norms_after_clipping(ours(per_user), 1.0)) <= 1.0
    per_pair = ours(reward_case(chosen, rejected, list(range(30))))
    clipped_pairs = per_pair / per_pair.norm(dim=1, keepdim=True).clamp(min=1.0)
    assert clipped_pairs[:29].sum(dim=0).norm() > 20  # the bug


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_poisoned_row_affects_its_own_unit_only(kind: str, poison: float) -> None:
    c = case(kind, [2, 0, 2, 1, 3, 0], 4)
    healthy = ours(c)
    c.batch.chosen.view(6, -1)[2, 1] = poison
    gradients = ours(c)
    for unit in (0, 1, 3):
        torch.testing.assert_close(gradients[unit], healthy[unit], rtol=0, atol=0)
    if math.isnan(poison):
        assert not gradients[2].isfinite().all()
        assert norms_after_clipping(gradients, 1.0)[2] == 0.0


def test_the_parameters_own_gradients_are_left_alone() -> None:
    c = case("mlp", [0, 1], 2)
    mark = torch.full_like(c.trainable["first.weight"], 7.0)
    c.trainable["first.weight"].grad = mark.clone()
    ours(c)
    torch.testing.assert_close(c.trainable["first.weight"].grad, mark, rtol=0, atol=0)
    assert c.trainable["second.weight"].grad is None


def test_the_layers_are_themselves_again_afterwards_also_after_a_fault() -> None:
    def faulty(model: Any, batch: FeaturePairs) -> Tensor:
        model(batch.chosen)
        raise ZeroDivisionError

    c = case("mlp", [0, 1], 2)
    before = c.model(c.batch.chosen)
    ours(c)
    with pytest.raises(ZeroDivisionError):
        ours(c, faulty)
    for module in c.model.modules():
        assert "forward" not in vars(module)
    torch.testing.assert_close(c.model(c.batch.chosen), before, rtol=0, atol=0)


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(x).squeeze(-1)
        return scores


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.score = nn.LayerNorm(6), nn.Linear(6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(self.norm(x)).squeeze(-1)
        return scores


class Loose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.score = nn.Parameter(torch.ones(6)), nn.Linear(6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(self.scale * x).squeeze(-1)
        return scores


class Tied(nn.Module):
    """One weight in two layers: each sees its part of the gradient alone, and both are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.second(torch.tanh(self.first(x))).sum(dim=-1)
        return scores


class TiedEmbedding(nn.Module):
    """A head that shares its weight with an embedding, as small language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x + self.embedding(torch.zeros(len(x), dtype=torch.int64))).sum(dim=-1)
        return scores


@pytest.mark.parametrize("make", [Biased, Tied])
def test_biases_and_layers_that_share_a_weight_equal_the_loop(make: Callable[[], nn.Module]) -> None:
    c = Case(randomised(make(), torch.float64), pairs((6,), [0, 2, 0, 1]), 3)
    expected = by_loop(c)
    assert (ours(c) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("make", [Normed, Loose, TiedEmbedding])
def test_a_tensor_whose_gradient_cannot_be_formed_per_unit_is_refused_by_name(make: Callable[[], nn.Module]) -> None:
    model = make().double()
    trainable = dict(model.named_parameters())
    with pytest.raises(UncoveredParameterError) as refusal:
        per_unit_gradients(model, bradley_terry_objective, pairs((6,), [0, 1]), 2, trainable)
    assert refusal.value.code == "FP440"
    assert any(name in refusal.value.what for name in trainable)


def test_a_tensor_of_another_model_is_refused() -> None:
    c = case("mlp", [0], 1)
    with pytest.raises(UncoveredParameterError):
        per_unit_gradients(c.model, bradley_terry_objective, c.batch, 1, case("mlp", [0], 1).trainable)


@pytest.mark.parametrize("row_unit", [[0, 2], [0, -1]])
def test_a_row_of_a_unit_that_does_not_exist_is_an_error_and_never_someone_elses(row_unit: list[int]) -> None:
    with pytest.raises(RowMapError):
        ours(case("reward head", row_unit, 2))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_opacus_agrees_on_the_linear_head(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule  # type: ignore[import-untyped]

        c = case("reward head", [2, 0, 2, 2, 1, 0], 4, dtype)
        mine = ours(c)
        wrapped = GradSampleModule(c.model, loss_reduction="sum")
        bradley_terry_objective(wrapped, c.batch).sum().backward()
        per_pair = next(iter(wrapped.parameters())).grad_sample.flatten(1)
    expected = torch.zeros_like(mine)
    for pair, unit in enumerate(c.batch.row_unit.tolist()):
        expected[unit] += per_pair[pair]
    assert (mine - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
