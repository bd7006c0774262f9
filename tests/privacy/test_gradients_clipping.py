"""Clip-and-sum of per-unit gradients tensor by tensor: the bound, poisoned units, groups, and the slow definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.clipping import ClippedSum, clip_and_sum
from privacy.errors import ParameterError
from privacy.gradients import UnitGradients
from tests.privacy.books import REPEATABLE

SHAPES = ((3, 4), (5,), (2, 2))
DIMENSION = 21
HOSTILE = (0.0, 1e-30, 1.0, 1e18, 1e19, 1e30, 3e38, math.nan, math.inf, -math.inf)


def gradients(rows: Tensor) -> UnitGradients:
    """Rows [units, 21] as the gradients of three tensors."""
    trainable = {str(shape): nn.Parameter(torch.zeros(shape, dtype=rows.dtype)) for shape in SHAPES}
    result = UnitGradients(trainable, len(rows))
    parts = rows.split([math.prod(shape) for shape in SHAPES], dim=1)
    for name, part in zip(trainable, parts, strict=True):
        result[name].copy_(part.reshape(result[name].shape))
    return result


def random_rows(units: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    scale = torch.logspace(-3, 3, units, dtype=torch.float64)[:, None]
    return (scale * torch.randn(units, DIMENSION, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [0.3, 100.0])
def test_it_equals_the_numpy_reference_client_by_client(bound: float, dtype: torch.dtype) -> None:
    rows, client = random_rows(12, dtype), [0, 2, 2, 0, 3, 3, 3, 0, 2, 2, 0, 3]  # client 1 has no unit
    kept = gradients(rows)
    found = kept.clip_and_sum(bound, torch.tensor(client), 4)
    expected = clip_and_sum(rows.numpy(), np.array(client), 4, bound)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, ClippedSum)
        assert one.l2_bound == bound
        np.testing.assert_allclose(one.value, other.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kept.flat(), rows, rtol=0, atol=0)  # clipping leaves the gradients as they were


def test_columns_are_in_the_order_of_the_trainable_tensors() -> None:
    rows = torch.arange(DIMENSION, dtype=torch.float32)[None]
    (total,) = gradients(rows).clip_and_sum(64.0)  # integers lie on its grid
    np.testing.assert_array_equal(total.value, np.arange(DIMENSION))


@given(st.lists(st.sampled_from(HOSTILE), min_size=DIMENSION, max_size=DIMENSION), st.integers(0, 4))
@settings(REPEATABLE, max_examples=60)
def test_zeroing_out_one_unit_moves_the_sum_by_at_most_the_bound(values: list[float], place: int) -> None:
    rows = random_rows(5)
    rows[place] = torch.tensor(values, dtype=torch.float32)
    (with_it,) = gradients(rows).clip_and_sum(0.5)
    rows[place] = 0.0
    (without,) = gradients(rows).clip_and_sum(0.5)
    moved = math.sqrt(math.fsum(x * x for x in (with_it.value - without.value).tolist()))
    assert np.isfinite(with_it.value).all()
    assert moved <= 0.5
    if not np.isfinite(np.array(values, dtype=np.float32)).all():
        np.testing.assert_array_equal(with_it.value, without.value)


def test_a_huge_finite_gradient_enters_at_the_bound() -> None:
    rows = torch.zeros(1, DIMENSION)
    rows[0, :2] = 3e38  # its square overflows in fp32
    (total,) = gradients(rows).clip_and_sum(2.0)
    assert np.linalg.norm(total.value) == pytest.approx(2.0, rel=2**-13)
    assert np.linalg.norm(total.value) < 2.0


def test_small_gradients_enter_as_they_are_but_for_the_grid() -> None:
    rows = random_rows(1) * 1e-3
    (total,) = gradients(rows).clip_and_sum(1.0)
    steps = rows[0].double().numpy() / total.step
    np.testing.assert_array_equal(total.value / total.step, np.trunc(steps))


def test_nobody_gives_zeros_for_every_client() -> None:
    sums = gradients(torch.zeros(0, DIMENSION)).clip_and_sum(1.0, torch.zeros(0, dtype=torch.int64), 3)
    assert [s.value.tolist() for s in sums] == [[0.0] * DIMENSION] * 3


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(ParameterError):
        gradients(random_rows(2)).clip_and_sum(bound)


def test_norms_are_of_the_whole_vector_and_nan_stays_visible() -> None:
    rows = random_rows(3)
    rows[1, 4] = math.nan
    norms = gradients(rows).norms()
    expected = rows.double().norm(dim=1)
    torch.testing.assert_close(norms[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=0)
    assert norms[1].isnan()


def test_bf16_tensors_get_fp32_gradients() -> None:
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    assert UnitGradients({"p": parameter}, 1)["p"].dtype == torch.float32
