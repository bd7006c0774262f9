"""Gaussian noise: the right standard deviation, and never the same twice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from privacy.errors import ParameterError
from privacy.noise import gaussian_noise
from privacy.rng import SeededNonPrivateRandom, Stream, SystemRandom

KEY = bytes(32)


@pytest.mark.statistical
@pytest.mark.parametrize("sigma", [1e-3, 1.0, 37.5])
def test_noise_has_its_standard_deviation_and_no_other(sigma: float) -> None:
    """False-alarm rate 1e-6 a case (Kolmogorov-Smirnov, 20,000 draws); 2/3 and 3/2 of sigma must be rejected."""
    noise = gaussian_noise(SeededNonPrivateRandom(11).stream("noise", round=1), sigma, 20_000)
    assert stats.kstest(noise, stats.norm(scale=sigma).cdf).pvalue > 1e-6
    for wrong in (sigma * 2 / 3, sigma * 3 / 2):
        assert stats.kstest(noise, stats.norm(scale=wrong).cdf).pvalue < 1e-6


@pytest.mark.statistical
def test_coordinates_of_the_noise_are_independent() -> None:
    """False-alarm rate 2e-6: neither values nor squares of the two Box-Muller halves correlate (10,000 pairs)."""
    noise = gaussian_noise(SeededNonPrivateRandom(12).stream("noise", round=1), 1.0, 20_000)
    halves = noise[:10_000], noise[10_000:]
    for a, b in (halves, (halves[0] ** 2, halves[1] ** 2)):
        assert stats.pearsonr(a, b).pvalue > 1e-6
    assert stats.pearsonr(halves[0] ** 2, (halves[0] + 0.3 * halves[1]) ** 2).pvalue < 1e-6  # the test can fail


@pytest.mark.parametrize(("sigma", "dimension"), [(0.0, 4), (0.0, 0), (3.0, 0)])
def test_no_deviation_gives_zeros_and_no_dimension_gives_nothing(sigma: float, dimension: int) -> None:
    np.testing.assert_array_equal(gaussian_noise(Stream(KEY), sigma, dimension), np.zeros(dimension))


@pytest.mark.parametrize("sigma", [math.nan, math.inf, -math.inf, -1.0, -1e-300])
def test_a_deviation_that_is_no_deviation_is_refused(sigma: float) -> None:
    with pytest.raises(ParameterError):
        gaussian_noise(Stream(KEY), sigma, 3)


@pytest.mark.statistical
def test_noise_is_never_reused_across_rounds_and_clients() -> None:
    """False-alarm rate 1e-6 over all 120 pairs of 16 vectors (Bonferroni on their correlations)."""
    rng = SeededNonPrivateRandom(13)
    vectors = [gaussian_noise(rng.stream("noise", round=r, client=c), 1.0, 500) for r in range(1, 5) for c in range(4)]
    for a, b in itertools.combinations(vectors, 2):
        assert stats.pearsonr(a, b).pvalue > 1e-6 / 120
        assert not np.isin(a, b).any()


def test_equal_labels_of_the_system_source_give_other_noise() -> None:
    a, b = (gaussian_noise(SystemRandom().stream("noise", round=1, client=1), 1.0, 100) for _ in range(2))
    assert not np.isin(a, b).any()
