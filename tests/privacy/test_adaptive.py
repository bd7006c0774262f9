"""Adaptive clipping: gradients and count are one release, and the norm goes to its quantile."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.adaptive import QuantileClipping, on_ladder
from privacy.clipping import clip_and_sum
from privacy.errors import ParameterError
from tests.privacy.books import REPEATABLE

NASTY = [0.0, 1.0, -1.0, 1e-200, 1e30, 1e154, 1e200, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize(("z", "cohort"), [(1.0, 270.0), (2.25, 270.0), (8.0, 20.0), (0.5, 1e6)])
def test_the_joint_release_has_the_noise_multiplier_that_is_booked(z: float, cohort: float) -> None:
    """Theorem 1 of the paper: the squared sensitivity-to-noise ratios of gradients (1/z_D) and count (1/2 s_b) add up."""
    clipping = QuantileClipping(z, cohort)
    both = clipping.gradient_multiplier**-2 + (0.5 / clipping.count_noise) ** 2
    assert both == pytest.approx(z**-2, rel=1e-12)
    assert z < clipping.gradient_multiplier < 1.04 * z  # and the count costs little
    norm = 0.7
    longest = clipping.with_bits(np.array([[norm * 0.6, norm * 0.8]]), norm)
    assert np.linalg.norm(longest) == pytest.approx(clipping.joint_bound(norm), rel=1e-5)
    noise = z * clipping.joint_bound(norm)  # of every coordinate
    assert noise == pytest.approx(clipping.gradient_multiplier * norm, rel=1e-12)
    assert noise / abs(longest[0, -1] * 2) == pytest.approx(clipping.count_noise, rel=1e-12)  # a bit is 1 wide


@given(
    hnp.arrays(np.float64, (4, 3), elements=st.floats(-5, 5) | st.sampled_from(NASTY)),
    st.floats(1e-3, 1e3),
    st.floats(0.3, 20.0),
)
@settings(REPEATABLE, max_examples=150)
def test_no_unit_with_its_bit_is_longer_than_the_joint_bound(rows: np.ndarray, norm: float, z: float) -> None:
    clipping = QuantileClipping(z, 100.0)
    lengths = np.linalg.norm(clipping.with_bits(rows, norm), axis=1)
    assert (lengths <= clipping.joint_bound(norm) * (1 + 1e-12)).all()


def test_rows_that_are_no_numbers_count_as_long_and_say_nothing_else() -> None:
    clipping = QuantileClipping(1.0, 100.0)
    rows = clipping.with_bits(np.array([[math.nan, 1.0], [math.inf, 0.0], [1e200, 0.0], [0.1, 0.0], [5.0, 0.0]]), 1.0)
    assert rows[:3, :2].tolist() == [[0.0, 0.0]] * 3
    assert np.sign(rows[:, 2]).tolist() == [-1, -1, -1, 1, -1]
    assert len(set(np.abs(rows[:, 2]).tolist())) == 1


def test_the_rows_themselves_are_left_alone() -> None:
    rows = np.array([[3.0, math.nan], [3.0, 4.0]])
    before = rows.copy()
    QuantileClipping(1.0, 100.0).with_bits(rows, 1.0)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("start", [0.01, 30.0])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_without_noise_the_norm_goes_to_the_quantile_of_the_norms(start: float, quantile: float) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(400, 5)) * rng.uniform(0.2, 2.0, size=(400, 1))
    clipping = QuantileClipping(0.5, 400.0, quantile, 0.3)
    norm = on_ladder(start)
    for _ in range(150):
        (total,) = clip_and_sum(clipping.with_bits(rows, norm), np.zeros(400, dtype=int), 1, clipping.joint_bound(norm))
        gradients, norm = clipping.split(total.value, norm)
    assert gradients.shape == (5,)
    share = float(np.mean(np.linalg.norm(rows, axis=1) <= norm))
    assert abs(share - quantile) < 0.03  # half a rung of the ladder, 0.0054, over the learning rate


def test_the_sums_of_the_gradients_are_those_of_fixed_clipping() -> None:
    rows = np.random.default_rng(4).normal(size=(50, 5))
    clipping = QuantileClipping(1.0, 50.0)
    (joint,) = clip_and_sum(clipping.with_bits(rows, 1.0), np.zeros(50, dtype=int), 1, clipping.joint_bound(1.0))
    (fixed,) = clip_and_sum(rows, np.zeros(50, dtype=int), 1, 1.0)
    np.testing.assert_allclose(clipping.split(joint.value, 1.0)[0], fixed.value, atol=50 * joint.step + 1e-4)


def test_shares_beyond_nought_and_one_move_the_norm_no_further() -> None:
    clipping = QuantileClipping(1.0, 100.0, 0.5, 0.2)
    for count, factor in ((1e9, -0.1), (-1e9, 0.1)):
        _, norm = clipping.split(np.array([0.0, count]), 1.0)
        assert norm == on_ladder(math.exp(factor))


@pytest.mark.parametrize("z", [0.0, -1.0, math.nan, math.inf])
def test_without_noise_there_is_no_adaptive_clipping(z: float) -> None:
    with pytest.raises(ParameterError):
        QuantileClipping(z, 100.0)
