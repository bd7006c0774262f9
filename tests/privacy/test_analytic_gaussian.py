"""The closed form of un-amplified Gaussians: against PLD, against scipy, and never below the exact value."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from privacy import accounting
from privacy.accounting import epsilon, pld_epsilon, rdp_epsilon
from privacy.analytic_gaussian import analytic_delta, analytic_epsilon, composed_mu, gaussian_rdp_epsilon
from privacy.events import CappedEvent, Event, FixedOrderEvent, GaussianEvent
from tests.privacy.books import REPEATABLE
from tests.privacy.oracles import discrete

CASES = [(2.2478, 100, 1e-5), (5.0, 100, 1e-5), (1.0, 1, 1e-3), (20.0, 40, 1e-8), (100.0, 1, 1e-5), (0.5, 3, 1e-6)]


@pytest.mark.slow
@pytest.mark.parametrize(("z", "times", "delta"), CASES, ids=str)
def test_pld_on_a_fine_grid_says_the_same(z: float, times: int, delta: float) -> None:
    exact = analytic_epsilon(composed_mu([(z, times)]), delta)
    assert pld_epsilon(((z, 1.0, times),), delta) == pytest.approx(exact, rel=1e-4, abs=1e-6)


def test_different_noise_composes_as_pld_composes_it() -> None:
    rows = ((1.5, 1.0, 2), (4.0, 1.0, 3), (9.0, 1.0, 7))
    exact = analytic_epsilon(composed_mu((z, n) for z, _, n in rows), 1e-5)
    assert pld_epsilon(rows, 1e-5) == pytest.approx(exact, rel=1e-5)
    events: dict[Event, int] = {GaussianEvent(z, 1.0): n for z, _, n in rows}
    assert epsilon(events, 1e-5) == exact


@pytest.mark.parametrize("mu", [1e-6, 1e-3, 0.1, 1.0, 5.0, 20.0, 44.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-12])
def test_the_value_is_an_upper_bound_and_a_tight_one(mu: float, delta: float) -> None:
    value = analytic_epsilon(mu, delta)

    def exact(eps: float) -> float:  # another way to the same number: logarithms of scipy's
        first, second = special.log_ndtr(mu / 2 - eps / mu), eps + special.log_ndtr(-mu / 2 - eps / mu)
        return float(math.exp(first) * -math.expm1(second - first))

    assert exact(value) <= delta * (1 + 1e-9)
    assert value == 0.0 or exact(value * (1 - 1e-6) - 1e-15) > delta * (1 - 1e-5)


def test_both_ways_of_the_scaled_error_function_meet() -> None:
    """On both sides of where the series takes over; it stays below, so that delta stays above."""
    for x in (23.9, 24.1, 40.0, 200.0):
        mu = 2 * math.sqrt(2) * x  # epsilon 0: both arguments are mu / 2
        exact = stats.norm.cdf(mu / 2) - float(special.erfcx(x)) * math.exp(-x * x) / 2
        assert exact <= analytic_delta(mu, 0.0) <= exact + 3e-12


@REPEATABLE
@given(st.floats(0.3, 50.0), st.integers(1, 500), st.floats(1e-10, 1e-2))
def test_it_lies_below_renyi_and_grows_with_what_is_spent(z: float, times: int, delta: float) -> None:
    mu, more = composed_mu([(z, times)]), composed_mu([(z, times + 1)])
    value = analytic_epsilon(mu, delta)
    assert value <= gaussian_rdp_epsilon(mu, delta) + 1e-9
    assert value <= analytic_epsilon(more, delta)
    assert value >= analytic_epsilon(mu, delta * 1.5)


@pytest.mark.parametrize(("z", "times", "delta"), CASES, ids=str)
def test_the_cross_check_is_the_renyi_accountants(z: float, times: int, delta: float) -> None:
    own = gaussian_rdp_epsilon(composed_mu([(z, times)]), delta)
    assert own == pytest.approx(rdp_epsilon(((z, 1.0, times),), delta), rel=1e-6, abs=5e-3)


@pytest.mark.parametrize(
    ("mu", "delta", "value"), [(0.0, 1e-5, 0.0), (1e-9, 1e-5, 0.0), (math.inf, 1e-5, math.inf), (1.0, 1e-310, math.inf)]
)
def test_edges(mu: float, delta: float, value: float) -> None:
    assert analytic_epsilon(mu, delta) == value


def test_noise_that_is_next_to_none_is_infinite() -> None:
    assert composed_mu([(1e-200, 1)]) == math.inf
    assert composed_mu([(5e-324, 1)]) == math.inf
    assert composed_mu([]) == 0.0
    assert epsilon({GaussianEvent(1e-200, 1.0): 1}, 1e-5) == math.inf


def test_unamplified_events_of_every_kind_need_no_loss_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> float:
        raise AssertionError("PLD of what has a closed form")

    monkeypatch.setattr(accounting, "pld_epsilon", never)
    kinds: list[Event] = [
        GaussianEvent(3.7, 1.0),
        discrete(3.7, 1.0),
        FixedOrderEvent(3.7, 1, 0, "o", 0.0, 0.0),
        CappedEvent(3.7, 9, "s", 0.0, 0.0),
    ]
    values = [epsilon({event: 7}, 1e-5) for event in kinds]
    assert all(a == pytest.approx(b, rel=1e-12) for a, b in itertools.pairwise(values))


def test_a_book_of_them_is_read_without_the_accountants_library() -> None:
    """`verify` of such a book then costs next to nothing beside the interpreter's start."""
    code = (
        "import sys; from privacy.accounting import epsilon; from privacy.events import GaussianEvent;"
        "print(epsilon({GaussianEvent(5.0, 1.0): 100}, 1e-5)); print('dp_accounting' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) == pytest.approx(9.99726, rel=1e-5)
    assert out[1] == "False"
