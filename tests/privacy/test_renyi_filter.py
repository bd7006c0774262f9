"""The filter: its costs against dp_accounting, its bound above the accountant's, its cap never passed."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting import rdp

from privacy.accounting import epsilon
from privacy.errors import ParameterError
from privacy.events import GaussianEvent, NonPrivateEvent, TrustedEvent
from privacy.renyi_filter import Cost, RenyiFilter, best_order, cost_of_fields, event_cost


@pytest.mark.parametrize("order", [2, 5, 16, 64])
@pytest.mark.parametrize(("z", "q"), [(1.0, 0.1), (2.0, 0.5), (8.0, 1.0), (0.5, 0.01), (30.0, 1e-4)])
def test_a_cost_is_the_divergence_that_dp_accounting_says(z: float, q: float, order: int) -> None:
    accountant = rdp.RdpAccountant([order], dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(GaussianEvent(z, q).to_dp_event())
    known = accountant._rdp[0]
    assert event_cost(GaussianEvent(z, q), order).rdp == pytest.approx(known, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("z", "q"), [(2.0, 0.1), (8.0, 1.0)])
def test_the_bound_is_above_the_accountant_and_close_to_it(z: float, q: float) -> None:
    event = GaussianEvent(z, q)
    order = best_order(8.0, 1e-5, event)
    watch, cost = RenyiFilter(8.0, 1e-5, order), event_cost(event, order)
    count = int(watch.allowance / cost.rdp)
    assert watch.admits(cost * count)
    assert not watch.admits(cost * (count + 1))
    known = epsilon({event: count}, 1e-5)
    assert known <= watch.bound(cost * count) <= 8.0
    assert known > 0.8 * 8.0  # not so far above that nobody would use it


def test_nothing_spent_is_nothing() -> None:
    watch = RenyiFilter(0.001, 1e-5, 2)  # this order can show nothing so small
    assert watch.allowance < 0
    assert watch.bound(Cost(0.0)) == 0.0
    assert watch.admits(Cost(0.0))
    assert not watch.admits(Cost(1e-300))


@pytest.mark.parametrize("event", [TrustedEvent(), NonPrivateEvent("no noise"), GaussianEvent(1e-300, 1.0)])
def test_what_has_no_finite_cost_is_never_admitted(event: object) -> None:
    cost = event_cost(event, 8)  # type: ignore[arg-type]
    assert cost.rdp == math.inf
    assert not RenyiFilter(1e9, 1e-5, 8).admits(cost)
    assert RenyiFilter(1e9, 1e-5, 8).bound(cost) == math.inf


def test_an_event_of_another_vocabulary_costs_infinity() -> None:
    assert cost_of_fields({"kind": "laplace", "scale": 1.0}, 4).rdp == math.inf


def test_slack_of_a_discrete_sampler_is_charged() -> None:
    plain = {"kind": "gaussian", "noise_multiplier": 2.0, "sample_rate": 1.0}
    discrete = cost_of_fields({**plain, "log_ratio": 0.01, "total_variation": 1e-12}, 4)
    assert discrete == Cost(4 / 8 + 0.01 * 7 / 3, 1e-12)
    assert cost_of_fields({"kind": "repeated", "event": plain, "times": 3}, 4).rdp == pytest.approx(3 * 4 / 8)
    watch = RenyiFilter(8.0, 1e-5, 4)
    assert watch.admits(discrete)
    assert not watch.admits(Cost(0.1, 1e-8))
    assert watch.bound(Cost(0.1, 1e-8)) == math.inf


@pytest.mark.parametrize(
    ("eps", "delta", "order"),
    [
        (0.0, 1e-5, 2),
        (math.inf, 1e-5, 2),
        (1.0, 0.0, 2),
        (1.0, 1.0, 2),
        (1.0, 1e-5, 1),
        (1.0, 1e-5, 2.5),
        (math.nan, 1e-5, 2),
    ],
)
def test_numbers_that_make_no_filter_are_refused(eps: float, delta: float, order: int) -> None:
    with pytest.raises(ParameterError):
        RenyiFilter(eps, delta, order)
