"""Sampling: every unit its own coin; a cut and a fixed order, and what each is booked as."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from privacy.errors import ParameterError
from privacy.events import FixedOrderEvent, GaussianEvent, TruncatedPoissonEvent
from privacy.rng import SeededNonPrivateRandom
from privacy.sampling import FixedOrderSampling, PoissonSampling, Sampling, TruncatedPoissonSampling, Units

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


@pytest.mark.statistical
def test_the_coins_of_two_units_do_not_covary() -> None:
    """False-alarm rate 1e-6 over all 780 pairs (Bonferroni, normal approximation of 3,000 products)."""
    coins = cohorts(24).astype(np.float64) - RATE
    covariance = coins.T @ coins / ROUNDS
    error = RATE * (1 - RATE) / math.sqrt(ROUNDS)  # of the mean product of two independent coins
    pairs = covariance[np.triu_indices(UNITS, 1)]
    limit = float(stats.norm.isf(1e-6 / 780 / 2)) * error
    assert np.abs(pairs).max() < limit
    batch = np.zeros((ROUNDS, UNITS))
    batch[:, :8] = 1.0  # fixed batches of shuffled units: each pair too rarely together
    fixed = np.random.default_rng(25).permuted(batch, axis=1) - RATE
    assert abs((fixed.T @ fixed / ROUNDS)[np.triu_indices(UNITS, 1)].mean()) > 4.9 * error / math.sqrt(780)


@pytest.mark.statistical
def test_the_coins_of_two_rounds_do_not_covary() -> None:
    """False-alarm rate 1e-6: consecutive rounds of one unit."""
    coins = cohorts(26).astype(np.float64) - RATE
    product = (coins[1:] * coins[:-1]).mean()
    assert abs(product) < 4.9 * RATE * (1 - RATE) / math.sqrt(coins[1:].size)


RELEASE = GaussianEvent(1.5, 1.0, "discrete", 1e-60, 1e-57)


def test_each_sampling_is_booked_as_what_it_is() -> None:
    cut = TruncatedPoissonSampling(0.25, 40, 12)
    order = FixedOrderSampling(4)
    assert PoissonSampling(0.25).secret(RELEASE, 3) == GaussianEvent(1.5, 0.25, "discrete", 1e-60, 1e-57)
    assert cut.secret(RELEASE, 3) == TruncatedPoissonEvent(1.5, 0.25, 40, 12, 1e-60, 1e-57)
    for seen in (PoissonSampling(0.25).seen(RELEASE, 3), cut.seen(RELEASE, 3)):
        assert seen == RELEASE  # who sees the cohort: un-amplified
    for number, block in ((1, 0), (4, 3), (5, 0)):
        event = order.secret(RELEASE, number)
        assert event == order.seen(RELEASE, number)
        assert isinstance(event, FixedOrderEvent)
        assert (event.block, event.blocks) == (block, 4)


def test_a_fixed_order_takes_every_unit_once_in_as_many_rounds_as_it_has_blocks() -> None:
    some, stream = units(7, 0, 13), SeededNonPrivateRandom(0).stream("coins")
    for blocks in (1, 2, 5):
        masks = [FixedOrderSampling(blocks).select(stream, some, r) for r in range(1, 3 * blocks + 1)]
        assert np.sum(masks, axis=0).tolist() == [3] * len(some)
        assert [m.tolist() for m in masks[:blocks]] == [m.tolist() for m in masks[blocks : 2 * blocks]]


def test_a_units_block_depends_on_nobody_else() -> None:
    some, stream = units(7, 13), SeededNonPrivateRandom(0).stream("coins")
    fewer = Units(some.client[3:], some.place[3:])
    for number in (1, 2, 3):
        mask = FixedOrderSampling(3).select(stream, some, number)
        np.testing.assert_array_equal(FixedOrderSampling(3).select(stream, fewer, number), mask[3:])


def test_a_cut_sample_never_has_more_than_its_cut_in_any_client() -> None:
    rng, some = SeededNonPrivateRandom(27), units(30, 3, 0, 50)
    cut = TruncatedPoissonSampling(0.5, 30, 6)
    masks = np.stack([cut.select(rng.stream("coins", round=r), some, r) for r in range(1, 201)])
    for client, size in ((0, 30), (1, 3), (3, 50)):
        own = masks[:, some.client == client]
        assert own.sum(axis=1).max() <= min(6, size)
    assert not masks[:, some.client == 3][:, 30:].any()  # beyond the population: never
    assert masks[:, :30].any(axis=0).all()


@pytest.mark.statistical
def test_a_cut_is_uniform_and_absent_units_are_drawn_too() -> None:
    """Each unit's chance is E[min(H, cut)] / population, H binomial over the whole population, whoever is present.

    False-alarm rate 1e-6 over 10 units (Bonferroni, binomial tests).
    """
    population, cut, rate, rounds = 30, 6, 0.5, 2000
    sampling, some = TruncatedPoissonSampling(rate, population, cut), units(10)
    heads = np.arange(population + 1)
    chance = float((stats.binom.pmf(heads, population, rate) * np.minimum(heads, cut)).sum() / population)
    rng = SeededNonPrivateRandom(28)
    drawn = np.sum([sampling.select(rng.stream("coins", round=r), some, r) for r in range(rounds)], axis=0)
    for n in drawn.tolist():
        assert stats.binomtest(n, rounds, chance).pvalue > 1e-6 / 10
        assert stats.binomtest(n, rounds, rate).pvalue < 1e-6  # the cut is not nothing


@pytest.mark.parametrize(("population", "largest"), [(0, 0), (5, 0), (5, 6), (-1, -1)])
def test_a_cut_that_cuts_nothing_drawable_is_refused(population: int, largest: int) -> None:
    with pytest.raises(ParameterError):
        TruncatedPoissonSampling(0.5, population, largest)


@pytest.mark.parametrize("blocks", [0, -3])
def test_an_order_without_a_block_is_refused(blocks: int) -> None:
    with pytest.raises(ParameterError):
        FixedOrderSampling(blocks)


@pytest.mark.parametrize("sampling", [PoissonSampling(0.3), TruncatedPoissonSampling(0.3, 5, 2), FixedOrderSampling(3)])
def test_no_units_give_an_empty_mask_under_every_sampling(sampling: Sampling) -> None:
    assert sampling.select(SeededNonPrivateRandom(0).stream("coins"), units(0), 1).shape == (0,)
