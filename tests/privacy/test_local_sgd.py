"""Local DP-SGD: every step is noised, every step is booked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from privacy.accounting import epsilon
from privacy.errors import MechanismMisuseError, ParameterError
from privacy.events import NonPrivateEvent, RepeatedEvent
from privacy.ledger import Ledger
from privacy.local_sgd import LocalDpSgd
from privacy.rng import SeededNonPrivateRandom, SystemRandom
from privacy.sampling import FixedOrderSampling, PoissonSampling, Units
from privacy.units import Adversary, Trust
from tests.privacy.books import header
from tests.privacy.oracles import discrete, grid_noise

Vector = npt.NDArray[np.float64]
UNITS = Units(np.zeros(12, dtype=np.int64), np.arange(12) / 12)
TARGETS = np.random.default_rng(0).normal(size=(12, 5))
START = np.full(5, 0.25)


def gradients(parameters: Vector, mask: npt.NDArray[np.bool_]) -> Vector:
    """Each unit pulls towards its own point."""
    return np.asarray(parameters - TARGETS[mask])


def local(z: float = 2.0, steps: int = 4, trust: Trust = Trust.LOCAL, rate: float = 0.5) -> LocalDpSgd:
    return LocalDpSgd(trust, PoissonSampling(rate), 1.0, z, steps, 0.3, 6.0)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "node.jsonl", header(scope="node:a", trust=Trust.LOCAL, private_rng=False))
    yield ledger
    ledger.close()


def test_a_round_costs_as_many_releases_as_it_has_steps() -> None:
    assert local().events() == dict.fromkeys(Adversary, RepeatedEvent(discrete(2.0, 0.5), 4))
    assert epsilon({local(8.0).events()[Adversary.SERVER]: 2}, 1e-5) == epsilon({discrete(8.0, 0.5): 8}, 1e-5)
    assert local(0.0).events()[Adversary.READER] == NonPrivateEvent("no noise")


def test_the_steps_are_those_of_a_slow_loop(node: Ledger) -> None:
    rng, sgd = SeededNonPrivateRandom(5), local()
    sent = sgd.train(START, gradients, UNITS, node.reserve(1, sgd.events()), client=3, rng=rng)
    theta = START.copy()
    for step in range(4):
        total = np.zeros(5)
        coins = rng.stream("coins", step=step, round=1, client=3).bernoulli(0.5, 12)
        for unit in np.flatnonzero(coins):
            pull = theta - TARGETS[unit]
            total += pull * min(1.0, 1.0 / float(np.linalg.norm(pull)))
        noise = grid_noise(rng.stream("noise", step=step, round=1, client=3), 2.0, 1.0, 5)
        theta -= 0.3 * (total + noise) / 6.0
    np.testing.assert_allclose(START - sent.value * 0.3 / 6.0, theta, atol=1e-4)
    assert (sent.client, sent.round, sent.l2_bound) == (3, 1, 1.0)
    sent.to_bytes()


@pytest.mark.statistical
def test_every_step_adds_its_own_noise(node: Ledger) -> None:
    """Without a unit the difference is noise alone: its variance is that of ``steps`` independent draws.

    2,000 coordinates: the sample variance within 4.9 standard errors (1e-6); one draw, or one draw repeated, is not.
    """
    sgd, nobody = local(z=2.0, steps=4), Units(np.zeros(0, dtype=np.int64), np.zeros(0))
    start = np.zeros(2000)
    reservation = node.reserve(1, sgd.events())
    sent = sgd.train(start, lambda *_: np.zeros((0, 2000)), nobody, reservation, client=0, rng=SystemRandom())
    one = 2.0**2
    assert sgd.noise_std**2 == pytest.approx(4 * one)
    error = 4 * one * (2 / 2000) ** 0.5
    assert abs(sent.value.var() - 4 * one) < 4.9 * error
    for wrong in (one, 16 * one, 4 * one * 4 / 9, 4 * one * 9 / 4):
        assert abs(sent.value.var() - wrong) > 4.9 * error


def test_leave_for_one_step_is_no_leave_for_four(node: Ledger) -> None:
    reservation = node.reserve(1, local(steps=1).events())
    with pytest.raises(MechanismMisuseError):
        local().train(START, gradients, UNITS, reservation, client=0, rng=SystemRandom())
    node.commit(reservation)
    own = node.reserve(2, local().events())
    local().train(START, gradients, UNITS, own, client=0, rng=SystemRandom())
    with pytest.raises(MechanismMisuseError):
        local().train(START, gradients, UNITS, own, client=0, rng=SystemRandom())


def test_the_federations_book_is_no_leave_for_a_client(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "federation.jsonl", header(trust=Trust.LOCAL, private_rng=False))
    with pytest.raises(MechanismMisuseError):
        local().train(START, gradients, UNITS, ledger.reserve(1, local().events()), client=0, rng=SystemRandom())
    ledger.close()


def test_what_is_no_local_dp_sgd_is_refused() -> None:
    with pytest.raises(ParameterError):
        local(trust=Trust.CENTRAL)
    with pytest.raises(ParameterError):
        local(steps=0)
    for sampling, rate, divisor in (
        (FixedOrderSampling(2), 0.3, 6.0),
        (PoissonSampling(0.5), float("nan"), 6.0),
        (PoissonSampling(0.5), 1, 0),
    ):
        with pytest.raises(ParameterError):
            LocalDpSgd(Trust.LOCAL, sampling, 1.0, 2.0, 2, rate, divisor)
