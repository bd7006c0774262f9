"""The mechanism of trust distributed: booked once, as it is, with at least the booked noise; scaled bounds; capped sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from privacy.accounting import epsilon
from privacy.distributed import DistributedMechanism
from privacy.errors import MechanismMisuseError, ParameterError
from privacy.events import CappedEvent, GaussianEvent, NonPrivateEvent, event_from_json
from privacy.ledger import Ledger, Reservation
from privacy.mechanism import Release
from privacy.rng import SeededNonPrivateRandom
from privacy.sampling import CappedSampling, PoissonSampling, Sampling, Units
from privacy.secagg.choice import make_plan
from privacy.secagg.plan import Cohort
from privacy.secagg.shares import SecureSum, simulated_sum
from privacy.units import Adversary, PrivacyUnit, Trust, further_adversaries
from tests.privacy.books import header

N, D, C, RNG = 5, 2000, 2.0, SeededNonPrivateRandom(3)


def mechanism(
    z: float = 1.5, *, sampling: Sampling | None = None, colluders: int = 1, dimension: int = D
) -> DistributedMechanism:
    plan = make_plan(
        "run",
        Cohort(N, 4, 4, colluders),
        dimension=dimension,
        max_grad_norm=C,
        unit=PrivacyUnit.USER,
        largest_norm=20.0,
        noise_multiplier=z,
    )
    return DistributedMechanism(sampling or PoissonSampling(0.25), plan)


class Books:
    """A federation's and a node's ledger."""

    def __init__(self, folder: Path) -> None:
        common = {"private_rng": False, "trust": Trust.DISTRIBUTED}
        self.federation = Ledger(folder / "federation.jsonl", header(**common))
        self.node = Ledger(folder / "node.jsonl", header(scope="node:a", **common))

    def reserve(self, m: DistributedMechanism, number: int = 1) -> tuple[Reservation, Reservation]:
        return self.node.reserve(number, m.node_events(number)), self.federation.reserve(number, m.events(number))


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    both = Books(tmp_path)
    yield both
    both.node.close()
    both.federation.close()


def total(
    m: DistributedMechanism, node: Reservation, rows: np.ndarray, *, bound: float = C, clients: int = N
) -> SecureSum:
    shares = {i: m.share([rows], bound, node, i, RNG, number=node.round) for i in range(clients)}
    return simulated_sum(m.secagg, shares)


def nobody(dimension: int = D) -> np.ndarray:
    return np.zeros((0, dimension))


@pytest.mark.slow
def test_every_adversary_books_the_same_worst_case_which_survives_the_book() -> None:
    m = mechanism()
    assert m.events(1) == m.node_events(1)
    (event,) = set(m.events(1).values())
    assert isinstance(event, GaussianEvent)
    assert event_from_json(event.to_json()) == event
    assert (event.sample_rate, event.noise) == (0.25, "discrete")
    assert 1.5 <= event.noise_multiplier < 1.51
    assert m.composition(1, 4) == {adversary: Counter({event: 4}) for adversary in Adversary}
    assert epsilon({event: 4}, 1e-5) >= epsilon({GaussianEvent(event.noise_multiplier, 0.25): 4}, 1e-5)


def test_without_noise_or_with_nobody_counted_as_a_colluder() -> None:
    assert set(mechanism(0.0).events().values()) == {NonPrivateEvent("no noise")}
    with pytest.raises(ParameterError, match="colluder"):
        mechanism(colluders=0)


@pytest.mark.statistical
def test_the_released_noise_is_that_of_all_shares_and_never_below_the_booked(books: Books) -> None:
    """Chi-square at 1e-6: a forgotten share, a share too many, half the noise or a wrong scale would leave the interval."""
    m = mechanism()
    node, federation = books.reserve(m)
    sums = total(m, node, nobody())
    release = m.release(sums, C, federation)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], D)
    assert low < float(release.value @ release.value) / release.noise_std**2 < high
    assert release.noise_std >= m.noise_std == m.noise_multiplier * C
    step = C / m.secagg.codec.steps
    assert release.noise_std == pytest.approx(step * float(m.secagg.noise.sigma) * N**0.5)
    for wrong in (N - 1, N + 1):
        assert not low < float(release.value @ release.value) / release.noise_std**2 * N / wrong < high


def test_another_bound_of_a_round_clips_at_that_bound_and_scales_back(books: Books) -> None:
    m = mechanism(0.0, dimension=50)
    node, federation = books.reserve(m)
    long, short = np.zeros((1, 50)), np.zeros((1, 50))
    long[0, 0], short[0, 1] = 1e9, 3.0
    rows = np.concatenate([long, short])
    release = m.release(total(m, node, rows, bound=6.0), 6.0, federation)
    assert release.value[0] == pytest.approx(N * 6.0, rel=0.02)  # not C = 2, and not 1e9
    assert release.value[1] == pytest.approx(N * 3.0, rel=0.02)


def test_a_share_needs_the_nodes_book_and_is_made_once(books: Books) -> None:
    m = mechanism(dimension=20)
    node, federation = books.reserve(m)
    with pytest.raises(MechanismMisuseError):
        m.share([nobody(20)], C, federation, 0, RNG, number=1)
    with pytest.raises(MechanismMisuseError):
        m.share([nobody(20)], C, Reservation(0, 1, m.node_events(1), "node:a"), 0, RNG, number=1)
    m.share([nobody(20)], C, node, 0, RNG, number=1)
    with pytest.raises(MechanismMisuseError, match="second release"):
        m.share([nobody(20)], C, node, 0, RNG, number=2)
    other = mechanism(2.0, dimension=20)
    with pytest.raises(MechanismMisuseError, match="another event"):
        other.share([nobody(20)], C, node, 1, RNG, number=1)


def test_a_sum_is_released_once_and_never_of_too_few(books: Books) -> None:
    m = mechanism(dimension=20)
    node, federation = books.reserve(m)
    sums = total(m, node, nobody(20))
    few = SecureSum(1, sums.integers, sums.value, sums.noise_std, (0, 1, 2))
    with pytest.raises(MechanismMisuseError, match="3 clients"):
        m.release(few, C, federation)
    with pytest.raises(MechanismMisuseError):
        m.release(sums, C, node)
    assert isinstance(m.release(sums, C, federation), Release)
    with pytest.raises(MechanismMisuseError, match="second release"):
        m.release(sums, C, federation)


def test_capped_sampling_asks_everybody_and_books_the_cap_alone() -> None:
    sampling = CappedSampling(0.25, 3, "run a")
    units = Units(np.arange(4), np.zeros(4))
    assert sampling.select(RNG.stream("coins"), units, 1).all()
    m = mechanism(sampling=sampling)
    (event,) = set(m.events(7).values())
    assert isinstance(event, CappedEvent)
    assert (event.cap, event.scope) == (3, "run a")
    plain = GaussianEvent(event.noise_multiplier, 1.0, "discrete", event.log_ratio, event.total_variation)
    assert epsilon(m.composition(1, 12)[Adversary.SERVER], 1e-5) == epsilon({plain: 3}, 1e-5)
    for rate, cap in ((0.0, 3), (1.5, 3), (0.5, 0)):
        with pytest.raises(ParameterError):
            CappedSampling(rate, cap, "run a")


def test_the_further_adversaries_name_how_many_may_collude() -> None:
    rows = further_adversaries(Trust.DISTRIBUTED, 7)
    assert "server with 7 colluding clients" in rows[0].described
    assert "not bounded" in rows[2].statement
    assert "c colluding" in further_adversaries(Trust.LOCAL)[0].described
