"""Every kind of event in the books: reference values, what counts for one unit, and the slack of integer noise."""

from __future__ import annotations

import math
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import accounting
from privacy.accounting import epsilon, pld_epsilon, rdp_epsilon
from privacy.events import (
    CappedEvent,
    Event,
    FixedOrderEvent,
    GaussianEvent,
    RepeatedEvent,
    TruncatedPoissonEvent,
)
from privacy.mechanism import LOG_RATIO, SMOOTHING, TOTAL_VARIATION
from tests.privacy.books import REPEATABLE
from tests.privacy.oracles import discrete, discrete_gaussian_pmf

pytestmark = pytest.mark.slow  # the accountants at many settings: a minute

DELTA = 1e-5
SLACK = (LOG_RATIO, TOTAL_VARIATION)

# (sigma, q, T, delta) -> (RDP, PLD) of dp_accounting, measured apart from this code: the settings of
# tests/privacy/test_accounting.py are the other half of the table.
TABLE = {
    (0.6, 0.01, 1000, 1e-5): (8.680, 7.434),
    (1.0, 0.001, 10_000, 1e-6): (0.980, 0.555),
    (0.8, 1e-4, 100_000, 1e-7): (1.300, 0.285),
    (0.4, 0.02, 500, 1e-5): (39.2, 34.30),
    (0.3, 0.1, 100, 1e-5): (171.5, 106.18),
}
RDP = {
    (1.0, 0.01, 1000): 2.101,
    (2.0, 0.1, 200): 3.680,
    (1.0, 0.25, 8): 6.255,
    (5.0, 1.0, 100): 10.73,
    (10.0, 0.01, 1000): 0.1097,
}


@pytest.mark.parametrize(("setting", "expected"), TABLE.items(), ids=str)
def test_both_accountants_reproduce_the_table_within_one_percent(
    setting: tuple[float, float, int, float], expected: tuple[float, float]
) -> None:
    z, q, rounds, delta = setting
    assert rdp_epsilon(((z, q, rounds),), delta) == pytest.approx(expected[0], rel=0.01)
    assert epsilon({GaussianEvent(z, q): rounds}, delta) == pytest.approx(expected[1], rel=0.01)


@pytest.mark.parametrize(("setting", "expected"), RDP.items(), ids=str)
def test_the_cross_check_reproduces_its_column(setting: tuple[float, float, int], expected: float) -> None:
    assert rdp_epsilon((setting,), DELTA) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("setting", "prv"), [((1.0, 0.01, 1000), 1.838), ((1.0, 0.25, 8), 5.468)], ids=str)
def test_the_prv_accountant_of_opacus_agrees_up_to_its_own_error_and_its_gdp_is_no_bound(
    setting: tuple[float, float, int], prv: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import GaussianAccountant, PRVAccountant  # type: ignore[import-untyped]

        opinions = []
        for accountant in (PRVAccountant(), GaussianAccountant()):
            accountant.history = [setting]
            opinions.append(float(accountant.get_epsilon(DELTA)))
    ours = epsilon({GaussianEvent(*setting[:2]): setting[2]}, DELTA)
    assert opinions[0] == pytest.approx(prv, rel=0.01)
    assert ours - 1e-3 <= opinions[0] <= ours + 0.015
    assert opinions[1] < ours


def test_a_run_of_three_stages_is_composed_as_one() -> None:
    """Heterogeneous: head, adapter and a count, each at its own noise and rate."""
    stages: Counter[Event] = Counter({discrete(2.0, 0.1): 50, discrete(6.0, 1.0): 3, discrete(4.0, 0.5): 10})
    whole = epsilon(stages, DELTA)
    rows = ((2.0, 0.1, 50), (4.0, 0.5, 10), (6.0, 1.0, 3))
    parts = [epsilon({event: n}, DELTA) for event, n in stages.items()]
    assert max(parts) < whole < sum(parts)
    assert whole <= rdp_epsilon(rows, DELTA) + 0.01
    assert whole == pytest.approx(pld_epsilon(rows, DELTA), abs=1e-9)


SETTINGS = st.tuples(st.floats(2.0, 12.0), st.sampled_from([0.05, 0.2, 0.6, 1.0]), st.integers(1, 12))


@given(SETTINGS, st.floats(1.02, 2.0), st.sampled_from([1e-7, 1e-5]))
@settings(REPEATABLE, max_examples=4)
def test_less_noise_more_sampling_more_rounds_or_less_delta_never_cost_less(
    setting: tuple[float, float, int], factor: float, delta: float
) -> None:
    z, q, rounds = setting
    base = epsilon({discrete(z, q): rounds}, delta)
    tiny = 2e-4 + 1e-3 * base  # two grids of loss differ by their rounding
    assert epsilon({discrete(z * factor, q): rounds}, delta) <= base + tiny
    assert epsilon({discrete(z, q / factor): rounds}, delta) <= base + tiny
    assert epsilon({discrete(z, q): rounds + 1}, delta) >= base - 1e-9
    assert epsilon({discrete(z, q): rounds}, delta * factor) <= base + 1e-9
    assert base <= rdp_epsilon(((z, q, rounds),), delta) + 0.01


def test_a_fixed_order_counts_the_worst_block_alone() -> None:
    def block(number: int, order: str = "v1", blocks: int = 4) -> FixedOrderEvent:
        return FixedOrderEvent(8.0, blocks, number, order, *SLACK)

    once, twice = epsilon({discrete(8.0, 1.0): 1}, DELTA), epsilon({discrete(8.0, 1.0): 2}, DELTA)
    assert epsilon({block(b): 1 for b in range(4)}, DELTA) == once
    assert epsilon({block(0): 2, block(1): 1, block(3): 1}, DELTA) == twice
    assert epsilon({block(0): 1, block(1, "another order"): 1}, DELTA) == twice  # a unit may be in both
    assert epsilon({block(0): 1, block(1, blocks=5): 1}, DELTA) == twice
    both = epsilon({block(0): 1, block(1): 1, discrete(8.0, 1.0): 1}, DELTA)  # everybody's release adds up
    assert both == twice


def test_blocks_of_different_noise_count_at_least_the_worst() -> None:
    events: Counter[Event] = Counter(
        {FixedOrderEvent(8.0, 2, 0, "v1", *SLACK): 3, FixedOrderEvent(4.0, 2, 1, "v1", *SLACK): 1}
    )
    bound = epsilon(events, DELTA)
    for z, n in ((8.0, 3), (4.0, 1)):
        assert bound >= epsilon({discrete(z, 1.0): n}, DELTA)


def test_a_cap_counts_up_to_the_cap_and_every_scope_for_itself() -> None:
    capped = CappedEvent(8.0, 3, "run a", *SLACK)
    for n, counted in ((1, 1), (3, 3), (50, 3)):
        assert epsilon({capped: n}, DELTA) == epsilon({discrete(8.0, 1.0): counted}, DELTA)
    other = CappedEvent(8.0, 3, "run b", *SLACK)
    assert epsilon({capped: 50, other: 2}, DELTA) == epsilon({discrete(8.0, 1.0): 5}, DELTA)


def test_repeated_steps_are_all_counted() -> None:
    steps = RepeatedEvent(discrete(8.0, 0.2), 5)
    assert epsilon({steps: 3, discrete(8.0, 0.2): 1}, DELTA) == epsilon({discrete(8.0, 0.2): 16}, DELTA)


def test_a_truncated_sample_costs_more_than_a_poisson_one_and_less_than_twice_the_sensitivity() -> None:
    def cut(largest: int) -> float:
        return epsilon({TruncatedPoissonEvent(4.0, 0.1, 100, largest, *SLACK): 2}, 1e-4)

    poisson = epsilon({discrete(4.0, 0.1): 2}, 1e-4)
    assert cut(100) == pytest.approx(poisson, abs=1e-3)
    assert poisson - 1e-3 <= cut(20) < cut(12) < cut(8)
    assert cut(8) <= epsilon({discrete(2.0, 1.0): 2}, 1e-4)


def test_a_truncated_sample_is_never_cheaper_than_dp_accounting_has_it() -> None:
    import dp_accounting
    from dp_accounting import pld

    for largest in (8, 12, 20):
        theirs = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
        theirs.compose(dp_accounting.TruncatedSubsampledGaussianDpEvent(100, 0.1, largest, 4.0), 2)
        ours = epsilon({TruncatedPoissonEvent(4.0, 0.1, 100, largest, *SLACK): 2}, 1e-4)
        assert theirs.get_epsilon(1e-4) - 1e-6 <= ours <= 2 * theirs.get_epsilon(1e-4)


def test_slack_is_charged_and_too_much_of_it_leaves_no_finite_epsilon() -> None:
    base = epsilon({GaussianEvent(8.0, 1.0): 4}, DELTA)
    assert epsilon({discrete(8.0, 1.0): 4}, DELTA) == base  # 1e-57 beside 1e-5
    costly = epsilon({GaussianEvent(8.0, 1.0, "discrete", 0.01, 1e-7): 4}, DELTA)
    left = DELTA * math.exp(-0.04) - (1 + math.exp(costly)) * 4e-7
    assert costly == pytest.approx(epsilon({GaussianEvent(8.0, 1.0): 4}, left) + 0.08, abs=1e-6)
    assert epsilon({GaussianEvent(8.0, 1.0, "discrete", 0.0, 1e-5): 4}, DELTA) == math.inf
    assert epsilon({GaussianEvent(8.0, 1.0, "discrete", 0.0, 1e-8): 400}, DELTA) == math.inf


def hockey_stick(p: np.ndarray, q: np.ndarray, eps: float) -> float:
    return float(np.maximum(p - math.exp(eps) * q, 0.0).sum())


@pytest.mark.parametrize("shift", [(5,), (3, 4), (1, 2, 2), (-4, 3)], ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_integer_noise_is_as_private_as_the_gaussian_that_is_booked(shift: tuple[int, ...], rate: float) -> None:
    """Exact sums over the grid: delta(eps) of N_Z with variance (z c)^2 + 9 against that of the Gaussian of multiplier z.

    Here c = |v| is a handful of steps, not 2^16 as in a run, so that grids matter.
    """
    z, c = 1.0, math.hypot(*shift)
    variance = (z * c) ** 2 + SMOOTHING**2
    reach = np.arange(-45, 46) if len(shift) < 3 else np.arange(-30, 31)
    axes = [discrete_gaussian_pmf(variance, reach)] * len(shift)
    moved = [discrete_gaussian_pmf(variance, reach - s) for s in shift]

    def product(factors: list[np.ndarray]) -> np.ndarray:
        out = factors[0]
        for factor in factors[1:]:
            out = np.multiply.outer(out, factor)
        return out

    without, with_it = product(axes), product(moved)
    mixed = (1 - rate) * without + rate * with_it
    for eps in (0.1, 0.5, 1.0, 2.0):
        exact = max(hockey_stick(mixed, without, eps), hockey_stick(without, mixed, eps))
        if exact < 1e-9:
            continue
        booked = pld_epsilon(((z, rate, 1),), exact * (1 - 1e-6) - 1e-13)
        assert booked >= eps - 1e-4  # at that delta the books say at least eps


def test_the_planted_bug_of_too_little_noise_shows_in_the_same_sums() -> None:
    shift, reach = (3, 4), np.arange(-45, 46)
    pmf = [discrete_gaussian_pmf(25.0 * (2 / 3) ** 2, reach - s) for s in (0, *shift)]
    without, with_it = np.multiply.outer(pmf[0], pmf[0]), np.multiply.outer(pmf[1], pmf[2])
    delta = hockey_stick(with_it, without, 1.0)
    assert pld_epsilon(((1.0, 1.0, 1),), delta) < 1.0 - 0.1


def test_every_event_that_is_not_infinite_has_a_row() -> None:
    rows: set[tuple[int, ...]] = set()
    kinds: list[Event] = [
        discrete(8.0, 0.5),
        FixedOrderEvent(8.0, 2, 1, "v1", *SLACK),
        CappedEvent(8.0, 1, "a", *SLACK),
        RepeatedEvent(discrete(8.0, 0.5), 2),
        TruncatedPoissonEvent(8.0, 0.5, 4, 4, *SLACK),
    ]
    for event in kinds:
        rows.add(tuple(accounting._atoms({event: 3}).values()))
        assert 0 < epsilon({event: 1}, DELTA) < math.inf
    assert rows == {(3,), (1,), (6,)}
