"""Poisson sampling: every unit its own coin."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from privacy.errors import ParameterError
from privacy.rng import SeededNonPrivateRandom
from privacy.sampling import PoissonSampling
from privacy.units import Units

ROUNDS, UNITS, RATE = 3000, 40, 0.2


def units(*sizes: int) -> Units:
    """Clients of these sizes, units evenly placed in each."""
    client = np.repeat(np.arange(len(sizes)), sizes)
    return Units(client, np.concatenate([np.arange(n) / n for n in sizes if n] or [np.zeros(0)]))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(ParameterError):
        PoissonSampling(rate)


def test_no_units_give_an_empty_mask() -> None:
    assert PoissonSampling(0.5).select(SeededNonPrivateRandom(0).stream("coins"), units(0), 1).shape == (0,)


def test_rate_one_takes_everybody() -> None:
    assert PoissonSampling(1.0).select(SeededNonPrivateRandom(0).stream("coins"), units(9), 1).all()


def test_a_round_in_which_nobody_is_drawn_is_an_ordinary_mask() -> None:
    mask = PoissonSampling(1e-12).select(SeededNonPrivateRandom(0).stream("coins"), units(9), 1)
    assert mask.shape == (9,)
    assert not mask.any()


def cohorts(seed: int) -> npt.NDArray[np.bool_]:
    """[ROUNDS, UNITS] coins."""
    rng, sampling = SeededNonPrivateRandom(seed), PoissonSampling(RATE)
    return np.stack(
        [sampling.select(rng.stream("coins", round=r, node="a"), units(UNITS), r + 1) for r in range(ROUNDS)]
    )


def size_p_values(coins: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Two-sided p values of mean and variance of the cohort's size against Binomial(UNITS, RATE)."""
    sizes = coins.sum(axis=1)
    n, variance = len(sizes), UNITS * RATE * (1 - RATE)
    fourth = variance * (1 + 3 * variance - 6 * RATE * (1 - RATE))  # fourth central moment of a binomial
    z_mean = (sizes.mean() - UNITS * RATE) / math.sqrt(variance / n)
    z_variance = (np.square(sizes - UNITS * RATE).mean() - variance) / math.sqrt((fourth - variance**2) / n)
    return 2 * float(stats.norm.sf(abs(z_mean))), 2 * float(stats.norm.sf(abs(z_variance)))


@pytest.mark.statistical
def test_the_cohort_size_is_binomial() -> None:
    """False-alarm rate 2e-6 (mean and variance of 3,000 cohort sizes)."""
    assert min(size_p_values(cohorts(21))) > 1e-6


@pytest.mark.statistical
def test_fixed_batches_and_coins_of_whole_clients_are_told_apart_from_poisson_sampling() -> None:
    """Power: two planted bugs that break amplification by q show in the variance of the cohort's size."""
    rng = np.random.default_rng(22)
    fixed = np.zeros((ROUNDS, UNITS), dtype=bool)
    fixed[:, : round(RATE * UNITS)] = True
    fixed = rng.permuted(fixed, axis=1)
    clients = np.repeat(rng.random((ROUNDS, UNITS // 4)) < RATE, 4, axis=1)
    for planted in (fixed, clients):
        assert size_p_values(planted)[1] < 1e-6


@pytest.mark.statistical
def test_every_unit_is_drawn_at_its_rate() -> None:
    """False-alarm rate 1e-6 over 40 units (Bonferroni on two-sided binomial tests)."""
    for heads in cohorts(23).sum(axis=0).tolist():
        assert stats.binomtest(heads, ROUNDS, RATE).pvalue > 1e-6 / UNITS
