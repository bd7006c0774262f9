"""Epsilon: reference values, second opinions, and slow oracles of two cases that have a formula."""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
from scipy import integrate, optimize, stats

from privacy import accounting
from privacy.accounting import add, epsilon, pld_epsilon, rdp_epsilon
from privacy.errors import AccountantDisputeError, ParameterError, UnsupportedEventError
from privacy.events import Event, GaussianEvent, NonPrivateEvent, TrustedEvent

DELTA = 1e-5

# (sigma, q, T) -> epsilon at delta 1e-5 by dp_accounting's PLD, measured apart from this code
REFERENCE = {
    (1.0, 0.01, 1000): 1.828,
    (2.0, 0.1, 200): 3.360,
    (1.0, 0.25, 8): 5.458,
    (5.0, 1.0, 100): 9.997,
    (10.0, 0.01, 1000): 0.0978,
}


def of(z: float, q: float, rounds: int, delta: float = DELTA) -> float:
    return epsilon({GaussianEvent(z, q): rounds}, delta)


@pytest.mark.parametrize(("setting", "expected"), REFERENCE.items(), ids=str)
def test_reference_values_are_reproduced_within_one_percent(setting: tuple[float, float, int], expected: float) -> None:
    assert of(*setting) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("setting", REFERENCE, ids=str)
def test_pld_is_no_looser_than_renyi(setting: tuple[float, float, int]) -> None:
    assert of(*setting) <= rdp_epsilon((setting,), DELTA) + 0.01


@pytest.mark.parametrize("setting", REFERENCE, ids=str)
def test_the_renyi_accountant_of_opacus_is_not_below_ours(setting: tuple[float, float, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import RDPAccountant  # type: ignore[import-untyped]

        accountant = RDPAccountant()
        accountant.history = [setting]
        second_opinion = float(accountant.get_epsilon(DELTA))
    assert of(*setting) <= second_opinion
    assert second_opinion <= 1.3 * of(*setting) + 0.1  # and the two speak of the same thing


def analytic_gaussian(mu: float, delta: float) -> float:
    """Exact epsilon of a Gaussian of sensitivity / sigma = mu: Balle and Wang 2018, theorem 8, solved for epsilon."""

    def excess(eps: float) -> float:
        return float(stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps + stats.norm.logcdf(-mu / 2 - eps / mu)) - delta)

    return float(optimize.brentq(excess, 0.0, 200.0, xtol=1e-10))


@pytest.mark.parametrize(
    ("z", "rounds", "delta"), [(5.0, 100, 1e-5), (3.0, 1, 1e-6), (8.0, 10, 1e-5), (1.0, 1, 1e-3), (20.0, 40, 1e-8)]
)
def test_the_unamplified_gaussian_has_the_epsilon_of_the_analytic_gaussian_mechanism(
    z: float, rounds: int, delta: float
) -> None:
    exact = analytic_gaussian(math.sqrt(rounds) / z, delta)
    assert exact - 1e-6 <= of(z, 1.0, rounds, delta) <= exact + 0.01


def subsampled_delta(z: float, q: float, eps: float) -> float:
    """Exact delta of one Poisson-sampled Gaussian round: the larger hockey-stick divergence, by numerical integration."""

    def density(x: float, mean: float) -> float:
        return math.exp(-(((x - mean) / z) ** 2) / 2) / (z * math.sqrt(2 * math.pi))

    def without(x: float) -> float:
        return density(x, 0.0)

    def with_it(x: float) -> float:
        return (1 - q) * density(x, 0.0) + q * density(x, 1.0)

    def divergence(upper: bool) -> float:
        def positive_part(x: float) -> float:
            p, r = (with_it(x), without(x)) if upper else (without(x), with_it(x))
            return max(0.0, p - math.exp(eps) * r)

        breaks = [-8 * z, -4 * z, 0.0, 0.5, 1.0, 1 + 4 * z, 1 + 8 * z]
        return float(sum(integrate.quad(positive_part, a, b, limit=200)[0] for a, b in itertools.pairwise(breaks)))

    return max(divergence(True), divergence(False))


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(("z", "q"), [(1.0, 0.1), (2.0, 0.5), (0.8, 0.9)])
def test_one_sampled_round_has_the_epsilon_of_its_hockey_stick_divergence(z: float, q: float) -> None:
    ours = of(z, q, 1, 1e-4)
    assert subsampled_delta(z, q, ours) <= 1e-4 * (1 + 1e-6)
    assert subsampled_delta(z, q, ours - 0.01) > 1e-4


GRID = list(itertools.product((4.0, 9.0), (0.2, 1.0), (1, 5), (1e-6, 1e-4)))


def test_epsilon_falls_with_noise_and_delta_and_rises_with_rate_and_rounds() -> None:
    value = {setting: of(*setting) for setting in GRID}
    compared = 0
    for a, b in itertools.permutations(GRID, 2):
        noisier = (-a[0], a[1], a[2], -a[3])
        worse = (-b[0], b[1], b[2], -b[3])
        if all(x <= y for x, y in zip(noisier, worse, strict=True)):
            assert value[a] <= value[b] + 1e-9, (a, b)
            compared += 1
    assert compared == 3**4 - 2**4  # pairs of a product order, each against itself left out
    assert len(set(value.values())) == len(GRID)  # strictly, where settings differ


def test_a_mixed_composition_costs_at_least_each_part_and_at_most_the_worst_event_throughout() -> None:
    first, second = GaussianEvent(4.0, 0.3), GaussianEvent(6.0, 1.0)
    mixed = epsilon({first: 4, second: 3}, DELTA)
    assert mixed > max(epsilon({first: 4}, DELTA), epsilon({second: 3}, DELTA))
    assert mixed <= of(4.0, 1.0, 7)
    # A Gaussian composition has a formula: 1/z^2 adds up.
    exact = analytic_gaussian(math.sqrt(3 / 36 + 2 / 16), DELTA)
    assert exact - 1e-6 <= epsilon({GaussianEvent(6.0, 1.0): 3, GaussianEvent(4.0, 1.0): 2}, DELTA) <= exact + 0.01


def test_splitting_or_reordering_a_composition_changes_nothing() -> None:
    a, b = GaussianEvent(4.0, 0.3), GaussianEvent(6.0, 1.0)
    assert epsilon({a: 2, b: 1}, DELTA) == epsilon({b: 1, a: 2}, DELTA)
    assert epsilon(add(add(add({}, a), b), a), DELTA) == epsilon({a: 2, b: 1}, DELTA)


def test_add_leaves_its_argument_alone() -> None:
    before: Counter[Event] = Counter({GaussianEvent(4.0, 0.3): 1})
    assert add(before, GaussianEvent(4.0, 0.3), 2) == {GaussianEvent(4.0, 0.3): 3}
    assert before == {GaussianEvent(4.0, 0.3): 1}


@pytest.mark.parametrize("worthless", [TrustedEvent(), NonPrivateEvent("no noise")], ids=lambda e: e.kind)
def test_one_trusted_or_non_private_event_makes_epsilon_infinite(worthless: Event) -> None:
    assert epsilon({worthless: 1}, DELTA) == math.inf
    assert epsilon({GaussianEvent(100.0, 0.1): 1, worthless: 1}, DELTA) == math.inf


def test_nothing_costs_nothing() -> None:
    assert epsilon({}, DELTA) == 0.0
    assert epsilon({GaussianEvent(1.0, 1.0): 0, TrustedEvent(): 0}, DELTA) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan, math.inf])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(ParameterError):
        epsilon({}, delta)


@pytest.fixture
def fresh_cache() -> Iterator[None]:
    """No epsilon of another test, and none of this test for others."""
    accounting.rows_epsilon.cache_clear()
    yield
    accounting.rows_epsilon.cache_clear()


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("wrong", [1.03, 1.011, math.nan, math.inf], ids=str)
def test_accountants_that_disagree_raise_a_dispute(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    monkeypatch.setattr(accounting, "pld_epsilon", lambda *_, **__: 5.0 * wrong)
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_, **__: 5.0)
    with pytest.raises(AccountantDisputeError):
        of(4.0, 0.5, 1)


@pytest.mark.usefixtures("fresh_cache")
def test_the_closed_form_of_unamplified_gaussians_is_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "analytic_epsilon", lambda *_: 50.0)
    with pytest.raises(AccountantDisputeError):
        of(4.0, 1.0, 1)


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize(("pld", "rdp"), [(5.04, 5.0), (0.0299, 0.02), (4.0, 5.0), (3.0, 999.0)])
def test_accountants_within_the_tolerance_do_not(monkeypatch: pytest.MonkeyPatch, pld: float, rdp: float) -> None:
    monkeypatch.setattr(accounting, "pld_epsilon", lambda *_, **__: pld)
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_, **__: rdp)
    assert of(4.0, 0.5, 1) == pld


@pytest.mark.usefixtures("fresh_cache")
def test_an_epsilon_of_renyi_that_is_no_number_is_a_dispute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_, **__: math.nan)
    with pytest.raises(AccountantDisputeError):
        of(8.0, 0.5, 1)


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("rdp", [1000.1, 1e9, math.inf])
def test_beyond_any_meaning_epsilon_is_infinite_and_no_loss_distribution_is_built(
    monkeypatch: pytest.MonkeyPatch, rdp: float
) -> None:
    """A hostile ledger with next to no noise would otherwise fill the memory of whoever verifies it."""

    def never(*_: object, **__: object) -> float:
        raise AssertionError("a loss distribution was built")

    monkeypatch.setattr(accounting, "pld_epsilon", never)
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_, **__: rdp)
    assert of(4.0, 0.5, 1) == math.inf


def test_next_to_no_noise_is_no_privacy() -> None:
    assert of(0.01, 1.0, 1) == math.inf
    assert of(1.0, 1.0, 10**6) == math.inf


@pytest.mark.parametrize("interval", [1e-4, 1e-3, 1e-2])
def test_a_coarser_grid_errs_upwards(interval: float) -> None:
    """A large epsilon is computed on a coarser grid, a millionth of it; here the grid is coarser still."""
    exact = analytic_gaussian(1.0, DELTA)
    assert exact - 1e-9 <= pld_epsilon(((1.0, 1.0, 1),), DELTA, interval) <= exact + 1.01 * interval


def test_numbers_beyond_the_accountants_are_refused_with_a_code() -> None:
    with pytest.raises(UnsupportedEventError):
        of(1e300, 0.5, 1)


def test_the_accountants_log_level_is_given_back() -> None:
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        pld_epsilon(((9.0, 1.0, 1),), DELTA)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


def test_an_event_that_the_accountant_does_not_know_has_no_epsilon() -> None:
    class Unknown:
        """Not of the vocabulary."""

    with pytest.raises(UnsupportedEventError, match="Unknown"):
        epsilon(Counter({Unknown(): 1}), 1e-5)  # type: ignore[dict-item]
