"""Discrete Gaussian noise: the exact law, the right standard deviation, and never the same twice."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from privacy import noise
from privacy.errors import ParameterError
from privacy.noise import DiscreteGaussian, eta
from privacy.rng import SeededNonPrivateRandom, Stream, SystemRandom
from tests.privacy.oracles import discrete_gaussian_by_rejection, discrete_gaussian_cdf, discrete_gaussian_pmf

KEY = bytes(32)
Integers = npt.NDArray[np.int64]


def stream(seed: int, **labels: int) -> Stream:
    return SeededNonPrivateRandom(seed).stream("noise", **labels)


def p_value(draws: Integers, sigma: float) -> float:
    """Chi-square of the draws against N_Z(0, sigma^2), cells of at least 20 expected draws, tails pooled."""
    last = math.ceil(20 * sigma)
    values = np.arange(-last, last + 1)
    expected = discrete_gaussian_pmf(sigma**2, values) * len(draws)
    cell = np.floor(np.cumsum(expected) / max(20.0, len(draws) / 200)).astype(int)
    _, cell = np.unique(cell, return_inverse=True)
    inside = np.clip(draws, -last, last) + last
    seen = np.bincount(cell[inside], minlength=cell.max() + 1)
    wanted = np.bincount(cell, weights=expected)
    keep = wanted > 5
    return float(stats.chisquare(seen[keep], wanted[keep] * seen[keep].sum() / wanted[keep].sum()).pvalue)


@pytest.mark.statistical
@pytest.mark.parametrize("sigma", [1.0, 3.0, 50.0, 257.0, 1500.0, 131072.5])
def test_the_law_is_the_discrete_gaussian_of_its_sigma_and_no_other(sigma: float) -> None:
    """False-alarm rate 1e-6 a case (chi-square, 20,000 draws); 2/3 and 3/2 of sigma must be rejected."""
    draws = noise.sample(sigma, 20_000, stream(11))
    if sigma < 2000:
        assert p_value(draws, sigma) > 1e-6
        assert p_value(draws, sigma * 2 / 3) < 1e-6
        assert p_value(draws, sigma * 3 / 2) < 1e-6
    assert stats.kstest(
        draws + stream(12).words(20_000) / 2.0**64 - 0.5, stats.norm(scale=sigma).cdf
    ).pvalue > 1e-6 or (
        sigma < 10  # where the spread-out integers differ from the continuous law
    )
    for wrong in (sigma * 2 / 3, sigma * 3 / 2):
        assert stats.kstest(draws, stats.norm(scale=wrong).cdf).pvalue < 1e-6


@pytest.mark.statistical
@pytest.mark.parametrize("sigma", [3.0, 300.0])
def test_the_variance_tells_a_rounded_continuous_gaussian_from_the_discrete_one(sigma: float) -> None:
    """A million draws: the sample variance within 4.9 standard errors (1e-6); variance + 1/12 is not at sigma 3."""
    draws = noise.sample(sigma, 1_000_000, stream(13)).astype(np.float64)
    error = sigma**2 * math.sqrt(2 / len(draws))
    assert abs(draws.var() - sigma**2) < 4.9 * error
    if sigma == 3.0:
        assert 4.9 * error < 1 / 12


@pytest.mark.statistical
def test_table_and_exact_rejection_sampler_agree() -> None:
    """Two-sample chi-square on 4,000 draws each, false-alarm rate 1e-6; another sigma is told apart."""
    exact = discrete_gaussian_by_rejection(Fraction(9), 4000, stream(14))
    for sigma, same in ((3.0, True), (4.5, False)):
        table = noise.sample(sigma, 4000, stream(15))
        edges = np.arange(-8, 9)
        counts = [np.bincount(np.searchsorted(edges, draws), minlength=18)[:18] for draws in (exact, table)]
        counts = [row[np.add(*counts) > 0] for row in counts]
        assert (float(stats.chi2_contingency(np.array(counts)).pvalue) > 1e-6) is same


@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(1), Fraction(97, 11), Fraction(900)])
def test_thresholds_are_those_of_the_slow_definition_to_250_bits(variance: Fraction) -> None:
    table = noise._table(variance)
    oracle = discrete_gaussian_cdf(variance, len(table.thresholds) // 2)
    for threshold, exact in zip(table.thresholds, oracle, strict=True):
        assert abs(Fraction(threshold, 2**256) - Fraction(exact)) < Fraction(3, 2**257)


@pytest.mark.parametrize("sigma", [257.0, 300.25, 1023.0])
def test_the_sum_of_a_fine_and_a_stretched_coarse_part_has_the_law_of_one(sigma: float) -> None:
    """The convolution written out in double precision, against the probabilities of N_Z."""
    sampler = DiscreteGaussian.of(sigma)
    a, fine = sampler._stretch, (4 * sampler._stretch) ** 2
    coarse = (sigma**2 - fine) / a**2
    x1 = np.arange(-int(12 * coarse**0.5), int(12 * coarse**0.5) + 1)
    for x in (0, 1, -1, a // 2, 100, -777, int(4 * sigma)):
        total = np.sum(discrete_gaussian_pmf(coarse, x1) * discrete_gaussian_pmf(fine, x - a * x1))
        np.testing.assert_allclose(total, discrete_gaussian_pmf(sigma**2, np.array([x]))[0], rtol=1e-11)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 255.0, 257.0, 2.0**20, 2.0**40])
def test_the_total_variation_is_below_the_booked_bound(sigma: float) -> None:
    assert 0 < DiscreteGaussian.of(sigma).total_variation < 2.0**-230


@pytest.mark.parametrize("r", [0.5, 1.0, 2.0])
def test_eta_bounds_how_far_a_sum_of_gaussians_depends_on_its_centre(r: float) -> None:
    sums = [sum(math.exp(-((k - x) ** 2) / (2 * r * r)) for k in range(-60, 61)) for x in np.linspace(0, 1, 41)]
    mean = r * math.sqrt(2 * math.pi)
    assert max(abs(s / mean - 1) for s in sums) <= eta(r) + 1e-14
    assert max(abs(s / mean - 1) for s in sums) >= 0.9 * eta(r) - 1e-14


class FixedWords:
    """Hands out the words that a test planned."""

    def __init__(self, *words: int) -> None:
        self._left = list(words)

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        now, self._left = self._left[:n], self._left[n:]
        return np.array(now, dtype=np.uint64)


def test_a_tie_in_the_first_64_bits_is_settled_by_the_other_192() -> None:
    thresholds = noise._table(Fraction(4)).thresholds
    middle = len(thresholds) // 2  # the threshold of P(X <= 0)
    parts = [thresholds[middle] >> shift & (2**64 - 1) for shift in (192, 128, 64, 0)]
    at = noise.sample(2.0, 1, FixedWords(*parts))[0]
    below = noise.sample(2.0, 1, FixedWords(*parts[:3], parts[3] - 1))[0]
    assert (at, below) == (1, 0)


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_extreme_words_stay_inside_the_table(word: int) -> None:
    draw = noise.sample(2.0, 1, FixedWords(*[word] * 8))[0]
    assert 36 < (-draw if word == 0 else draw) <= 38


@pytest.mark.parametrize(("sigma", "size"), [(0.0, 4), (0.0, 0), (3.0, 0), (1e6, 0)])
def test_no_deviation_gives_zeros_and_no_size_gives_nothing(sigma: float, size: int) -> None:
    draws = noise.sample(sigma, size, Stream(KEY))
    np.testing.assert_array_equal(draws, np.zeros(size))
    assert draws.dtype == np.int64


@pytest.mark.parametrize("sigma", [math.nan, math.inf, -math.inf, -1.0, -1e-300, 2.0**41])
def test_a_deviation_that_is_no_deviation_is_refused(sigma: float) -> None:
    with pytest.raises(ParameterError):
        noise.sample(sigma, 3, Stream(KEY))


@pytest.mark.statistical
def test_noise_is_never_reused_across_rounds_and_clients() -> None:
    """False-alarm rate 1e-6 over all 120 pairs of 16 vectors (Bonferroni on their correlations)."""
    vectors = [noise.sample(1e6, 500, stream(16, round=r, client=c)) for r in range(1, 5) for c in range(4)]
    for a, b in itertools.combinations(vectors, 2):
        assert stats.pearsonr(a, b).pvalue > 1e-6 / 120
        assert np.mean(a == b) < 0.01


def test_equal_labels_of_the_system_source_give_other_noise() -> None:
    a, b = (noise.sample(1e9, 100, SystemRandom().stream("noise", round=1, client=1)) for _ in range(2))
    assert not np.isin(a, b).any()
