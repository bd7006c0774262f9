"""Each bound against exact small cases, and each derivation step that could be wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from privacy.secagg.bounds import (
    clamp_within,
    folding_ratio,
    honest_shares,
    rounded_norm2,
    smoothing_ratio,
    wrap_probability,
)
from privacy.secagg.plan import Cohort, Consistency

Pmf = npt.NDArray[np.float64]


def gaussian(sigma: float, reach: int, mean: float = 0.0) -> Pmf:
    """N_Z(mean, sigma^2) on [-reach, reach]."""
    z = np.arange(-reach, reach + 1)
    weight = np.exp(-((z - mean) ** 2) / (2 * sigma**2))
    return weight / weight.sum()


def chance_above(x: npt.NDArray[np.float64], limit: int) -> float:
    """Pr[||floor(x + U)||^2 > limit], exactly, by convolution over the coordinates."""
    law = {0: 1.0}
    for value in x:
        low = math.floor(value)
        up = value - low
        law_next: dict[int, float] = {}
        for total, p in law.items():
            for square, q in ((low * low, 1 - up), ((low + 1) ** 2, up)):
                law_next[total + square] = law_next.get(total + square, 0.0) + p * q
        law = law_next
    return sum(p for total, p in law.items() if total > limit)


@pytest.mark.parametrize("dimension", [1, 2, 5, 12])
@pytest.mark.parametrize("steps", [0.7, 3.0, 20.0])
@pytest.mark.parametrize("failure", [0.6, 0.05, 1e-4])
def test_the_rounded_norm_exceeds_its_bound_at_most_as_often_as_said(
    dimension: int, steps: float, failure: float
) -> None:
    rng = np.random.default_rng(dimension)
    rows = [rng.standard_normal(dimension), np.ones(dimension), np.eye(dimension)[0], np.full(dimension, -0.5)]
    for row in rows:
        x = row * (steps / np.linalg.norm(row))
        assert chance_above(x, rounded_norm2(steps, dimension, failure)) <= failure
        assert chance_above(x, rounded_norm2(steps, dimension, 0.0)) == 0.0


def test_the_bound_of_the_norm_is_not_idle() -> None:
    """Without the quarter per coordinate, or the two under the root, exact cases break it."""
    x = np.full(12, 0.5)
    steps = float(np.linalg.norm(x))
    assert chance_above(x, math.floor(steps**2)) > 0.5
    x = np.full(16, 7.5)
    steps = float(np.linalg.norm(x))
    halved = steps**2 + 4 + math.sqrt(0.1 * math.log(1 / 1e-3)) * (steps + 2)
    assert chance_above(x, math.floor(halved)) > 1e-3


@pytest.mark.parametrize(("shares", "sigma"), [(2, 0.6), (3, 0.6), (5, 0.8), (2, 1.0), (4, 1.2)])
def test_a_sum_of_shares_is_as_near_to_a_discrete_gaussian_as_said(shares: int, sigma: float) -> None:
    one, total = gaussian(sigma, 40), np.ones(1)
    for _ in range(shares):
        total = np.convolve(total, one)
    middle = len(total) // 2
    ideal = gaussian(sigma * math.sqrt(shares), middle)
    near = slice(middle - 8, middle + 9)  # where doubles resolve the ratio
    worst = float(np.abs(np.log(total[near] / ideal[near])).max())
    assert worst <= folding_ratio(shares, sigma) + 1e-12
    if shares == 2:  # several folds do not all err in one direction
        assert worst >= 0.05 * folding_ratio(shares, sigma)


def test_folding_is_negligible_from_three_steps_on() -> None:
    assert folding_ratio(1000, 3.0) < 1e-35
    assert folding_ratio(10, 0.5) > 0.1


@pytest.mark.parametrize("r", [0.5, 0.75, 1.0])
def test_the_smoothing_step_gives_the_discrete_gaussian(r: float) -> None:
    """z of weight exp(-(z-g)^2/2r^2) around a continuous g: its law, by quadrature, against N_Z."""
    s = 2.0
    g = np.linspace(-30, 30, 120_001)
    density = np.exp(-(g**2) / (2 * (s * s - r * r)))
    z = np.arange(-40, 41)
    weight = np.exp(-((z[:, None] - g[None, ::50]) ** 2) / (2 * r * r))
    kernel = weight / weight.sum(axis=0)
    law = kernel @ density[::50]
    law /= law.sum()
    near = slice(33, 48)
    ratio = np.abs(np.log(law[near] / gaussian(s, 40)[near])).max()
    assert ratio <= smoothing_ratio(r) + 1e-9
    assert smoothing_ratio(3.0) < 1e-70


@pytest.mark.parametrize("bits", [16, 32])
def test_no_sum_wraps_below_the_clamp(bits: int) -> None:
    for clients, sigma in ((3, 0.0), (10, 40.0), (100, 10.0)):
        clamp = clamp_within(bits, clients, sigma, 1000, 1e-9)
        assert clamp > 0
        assert wrap_probability(bits, clients, clamp, sigma, 1000) <= 1e-9
        assert wrap_probability(bits, clients, 2 * clamp, sigma, 1000) == 1.0
        assert clients * clamp < 1 << (bits - 1)


# ---- the counting lemma


def answers(v: int, members: tuple[int, ...], least: int) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
    """Every (cohort, survivors) that an honest client v answers."""
    for size in range(least, len(members) + 1):
        for cohort in itertools.combinations(members, size):
            if v not in cohort:
                continue
            for alive in range(least, size + 1):
                for survivors in itertools.combinations(cohort, alive):
                    if v in survivors:
                        yield frozenset(cohort), frozenset(survivors)


Shown = dict[int, tuple[frozenset[int], frozenset[int]]]


def unmasked(shown: Shown, honest: int, threshold: int, corrupt: int) -> list[int]:
    """Honest vectors in each sum that the server can unmask, after each honest client answered what it was shown."""
    lists = shown.values()
    seed = [sum(u in alive for _, alive in lists) + corrupt >= threshold for u in range(honest)]
    key = [sum(u in cohort - alive for cohort, alive in lists) + corrupt >= threshold for u in range(honest)]
    assert not any(a and b for a, b in zip(seed, key, strict=True))  # nobody loses both secrets
    sizes = []
    for cohort in {cohort for cohort, _ in lists}:
        needed = [u for u in cohort if u < honest and not key[u]]
        if needed and all(shown[u][0] == cohort and seed[u] for u in needed):
            sizes.append(len(needed))
    return sizes


def fewest_honest(n: int, least: int, threshold: int, corrupt: int) -> int:
    """By trying every way in which a server may lie: the fewest honest vectors in a sum it can unmask."""
    honest, worst = n - corrupt, n
    for view in itertools.product(*(tuple(answers(v, tuple(range(n)), least)) for v in range(honest))):
        worst = min([worst, *unmasked(dict(enumerate(view)), honest, threshold, corrupt)])
    return worst


@pytest.mark.parametrize(
    ("n", "least", "threshold", "corrupt"),
    [(3, 3, 3, 0), (4, 3, 3, 0), (4, 3, 3, 1), (4, 4, 3, 0), (4, 4, 4, 1), (5, 5, 4, 1), (5, 4, 4, 1), (5, 4, 4, 2)],
)
def test_the_lemma_is_exact_for_small_cohorts(n: int, least: int, threshold: int, corrupt: int) -> None:
    """Every lie of the server is tried; what it can unmask at the least is what the lemma says, neither more nor less."""
    bound = honest_shares(n, least, threshold, corrupt, strict=False)
    assert fewest_honest(n, least, threshold, corrupt) == bound


@pytest.mark.slow
@pytest.mark.parametrize("case", [(5, 4, 4, 0), (6, 5, 5, 2), (6, 5, 5, 3)])
def test_the_lemma_is_exact_for_larger_cohorts(case: tuple[int, int, int, int]) -> None:
    assert fewest_honest(*case) == honest_shares(*case, strict=False)


def test_a_smaller_cohort_shown_to_one_client_gives_that_client_away() -> None:
    """n_inv 10, n_min = t = 7, c = 2. One client is shown a cohort of 7 (4 more honest, 2 corrupt); the 7 other honest ones
    are shown all 10 and lists that omit those 4 in turn, so that their mask keys can be rebuilt. Then the one vector has
    no unknown pad left. A bound that lets all clients see one cohort says 4 here; the truth is 1.
    """
    cohort, everybody = frozenset({0, 1, 2, 3, 4, 8, 9}), frozenset(range(10))
    omitted = {v: {w for w in (1, 2, 3, 4) if w != v} for v in (1, 2, 3, 4)}
    omitted |= {5: {1, 2, 3}, 6: {2, 3, 4}, 7: {1, 4}}
    shown: Shown = {0: (cohort, cohort), **{v: (everybody, everybody - o) for v, o in omitted.items()}}
    assert all(len(alive) >= 7 and v in alive for v, (_, alive) in shown.items())
    assert min(unmasked(shown, 8, 7, 2)) == 1 == honest_shares(10, 7, 7, 2, strict=False)
    assert 8 - 8 * 3 // 5 == 4


def test_a_threshold_of_one_half_lets_the_server_learn_both_secrets() -> None:
    """The check can fail: this is what ``Cohort`` refuses."""
    with pytest.raises(AssertionError):
        fewest_honest(4, 2, 2, 0)


@pytest.mark.parametrize(
    ("n", "least", "colluders", "folded"),
    [
        (10, 9, 0, 9),
        (10, 9, 1, 8),
        (10, 8, 1, 7),
        (100, 90, 0, 89),
        (100, 90, 10, 79),
        (1000, 900, 100, 788),
        (100, 70, 10, 35),
    ],
)
def test_the_price_of_two_trips(n: int, least: int, colluders: int, folded: int) -> None:
    assert Cohort(n, least, least, colluders).honest_shares == folded
    assert Cohort(n, least, least, colluders, Consistency.STRICT).honest_shares == least - colluders


def test_colluders_never_help() -> None:
    for n, least in ((10, 8), (30, 25), (100, 80)):
        shares = [Cohort(n, least, least, c).honest_shares for c in range(min(least, 2 * least - n))]
        assert shares == sorted(shares, reverse=True)
