"""The only way to a release: booked first, bounded as booked, noised as booked, once."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from privacy.clipping import ClippedSum, clip_and_sum, grid_step
from privacy.errors import MechanismMisuseError, ParameterError
from privacy.events import Event, GaussianEvent, NonPrivateEvent, TrustedEvent
from privacy.ledger import Ledger, Reservation
from privacy.mechanism import LARGEST_DIMENSION, LOG_RATIO, SMOOTHING, TOTAL_VARIATION, GaussianMechanism
from privacy.noise import DiscreteGaussian, eta
from privacy.rng import SeededNonPrivateRandom, SystemRandom
from privacy.sampling import FixedOrderSampling, PoissonSampling
from privacy.units import Adversary, Trust
from tests.privacy.books import header
from tests.privacy.oracles import discrete, grid_noise

Vector = npt.NDArray[np.float64]
READER, OTHERS, SERVER = Adversary.READER, Adversary.OTHER_CLIENTS, Adversary.SERVER


def make(trust: Trust = Trust.CENTRAL, z: float = 1.5, rate: float = 0.25, bound: float = 2.0) -> GaussianMechanism:
    return GaussianMechanism(trust, PoissonSampling(rate), bound, z)


class Books:
    """A federation's and a node's ledger; every call books one more round of a mechanism."""

    def __init__(self, folder: Path) -> None:
        self.federation = Ledger(folder / "federation.jsonl", header(private_rng=False))
        self.node = Ledger(folder / "node.jsonl", header(scope="node:a", private_rng=False))
        self._rounds = itertools.count(1)

    def reserve(self, mechanism: GaussianMechanism, *, node: bool = False) -> Reservation:
        ledger = self.node if node else self.federation
        if ledger.open_reservation is not None:
            ledger.commit(ledger.open_reservation)
        return ledger.reserve(next(self._rounds), mechanism.node_events() if node else mechanism.events())


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    both = Books(tmp_path)
    yield both
    both.federation.close()
    both.node.close()


def bounded(bound: float = 2.0, dimension: int = 3) -> ClippedSum:
    return ClippedSum(np.arange(float(dimension)), bound)


AMPLIFIED, PLAIN, TRUSTED = discrete(1.5, 0.25), discrete(1.5, 1.0), TrustedEvent()


@pytest.mark.parametrize(
    ("trust", "federation", "node"),
    [
        pytest.param(
            Trust.CENTRAL,
            {READER: AMPLIFIED, OTHERS: AMPLIFIED, SERVER: TRUSTED},
            {READER: PLAIN, OTHERS: PLAIN, SERVER: TRUSTED},
            id="central",
        ),
        pytest.param(
            Trust.LOCAL,
            {READER: AMPLIFIED, OTHERS: AMPLIFIED, SERVER: AMPLIFIED},
            {READER: AMPLIFIED, OTHERS: AMPLIFIED, SERVER: AMPLIFIED},
            id="local",
        ),
    ],
)
def test_events_are_those_of_the_table_of_adversaries(
    trust: Trust, federation: dict[Adversary, Event], node: dict[Adversary, Event]
) -> None:
    assert make(trust).events() == federation
    assert make(trust).node_events() == node


def test_without_noise_everybody_but_a_trusted_server_is_booked_as_non_private() -> None:
    naked = NonPrivateEvent("no noise")
    assert make(z=0.0).events() == {READER: naked, OTHERS: naked, SERVER: TRUSTED}
    assert make(z=0.0).node_events() == {READER: naked, OTHERS: naked, SERVER: TRUSTED}
    assert make(Trust.LOCAL, z=0.0).events() == dict.fromkeys(Adversary, naked)


def test_the_event_holds_floats_whatever_the_recipe_holds() -> None:
    event = GaussianMechanism(Trust.CENTRAL, PoissonSampling(1), 1, 2).events()[READER]
    assert isinstance(event, GaussianEvent)
    assert (type(event.noise_multiplier), type(event.sample_rate)) == (float, float)


@pytest.mark.parametrize(
    ("z", "bound"),
    [(-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan), (1.0, math.inf)],
)
def test_parameters_of_no_mechanism_are_refused(z: float, bound: float) -> None:
    with pytest.raises(ParameterError):
        make(z=z, bound=bound)


def test_distributed_trust_is_refused() -> None:
    with pytest.raises(ParameterError, match="distributed"):
        make(Trust.DISTRIBUTED)


def test_noise_is_sized_by_the_bound_and_by_nothing_typed_beside_it() -> None:
    """Planted bug of well-known systems: a sensitivity apart from the clipping norm."""
    assert make(z=1.5, bound=2.0).noise_std == 3.0
    assert make(z=1.5, bound=0.1).noise_std == pytest.approx(0.15)


def test_a_release_carries_its_round_and_its_noise(books: Books) -> None:
    reservation = books.reserve(make())
    release = make().release(bounded(), reservation, SeededNonPrivateRandom(0))
    assert (release.round, release.noise_std, release.value.shape) == (reservation.round, 3.0, (3,))


def other_events() -> list[GaussianMechanism]:
    return [make(z=1.50001), make(rate=0.2), make(Trust.LOCAL), make(z=0.0)]


@pytest.mark.parametrize("booked", other_events(), ids=lambda m: f"{m.trust} {m.noise_multiplier} {m.sampling.rate}")
def test_a_reservation_of_another_event_is_no_leave(books: Books, booked: GaussianMechanism) -> None:
    reservation = books.reserve(booked)
    with pytest.raises(MechanismMisuseError):
        make().release(bounded(), reservation, SeededNonPrivateRandom(0))
    assert not reservation.used


def test_the_books_of_the_node_are_no_leave_for_the_server_nor_the_servers_for_a_client(books: Books) -> None:
    with pytest.raises(MechanismMisuseError):
        make().release(bounded(), books.reserve(make(), node=True), SeededNonPrivateRandom(0))
    with pytest.raises(MechanismMisuseError):
        make().entrust(bounded(), books.reserve(make()), 0)


@pytest.mark.parametrize("bound", [1.0, 4.0, 2.0000001, math.nan, math.inf])
def test_a_sum_of_another_bound_is_refused(books: Books, bound: float) -> None:
    reservation = books.reserve(make())
    with pytest.raises(MechanismMisuseError):
        make().release(bounded(bound), reservation, SeededNonPrivateRandom(0))
    with pytest.raises(MechanismMisuseError):
        make().entrust(bounded(bound), books.reserve(make(), node=True), 0)
    with pytest.raises(MechanismMisuseError):
        make(Trust.LOCAL).release_locally(
            bounded(bound), books.reserve(make(Trust.LOCAL), node=True), 0, SeededNonPrivateRandom(0)
        )
    make().release(bounded(), reservation, SeededNonPrivateRandom(0))  # a refusal uses nothing up


def test_the_server_releases_once_a_reservation(books: Books) -> None:
    reservation = books.reserve(make())
    make().release(bounded(), reservation, SeededNonPrivateRandom(0))
    with pytest.raises(MechanismMisuseError):
        make().release(bounded(), reservation, SeededNonPrivateRandom(0))
    make().release(bounded(), books.reserve(make()), SeededNonPrivateRandom(0))


def test_each_client_entrusts_once_a_reservation(books: Books) -> None:
    reservation = books.reserve(make(), node=True)
    for client in (0, 1):
        sealed = make().entrust(bounded(), reservation, client)
        assert (sealed.client, sealed.round, sealed.l2_bound) == (client, reservation.round, 2.0)
        np.testing.assert_array_equal(sealed.value, bounded().value)
        with pytest.raises(MechanismMisuseError):
            make().entrust(bounded(), reservation, client)


def test_each_client_releases_locally_once_a_reservation(books: Books) -> None:
    mechanism = make(Trust.LOCAL)
    reservation = books.reserve(mechanism, node=True)
    for client in (0, 1):
        mechanism.release_locally(bounded(), reservation, client, SeededNonPrivateRandom(0))
        with pytest.raises(MechanismMisuseError):
            mechanism.release_locally(bounded(), reservation, client, SeededNonPrivateRandom(0))


@pytest.mark.parametrize("how", ["commit", "spent", "given back"])
def test_a_closed_reservation_is_no_leave(books: Books, how: str) -> None:
    reservation = books.reserve(make())
    if how == "commit":
        books.federation.commit(reservation)
    else:
        books.federation.abort(reservation, "x", spent=how == "spent")
    with pytest.raises(MechanismMisuseError):
        make().release(bounded(), reservation, SeededNonPrivateRandom(0))


def test_under_central_trust_no_client_adds_the_noise(books: Books) -> None:
    reservation = books.reserve(make(), node=True)
    with pytest.raises(MechanismMisuseError):
        make().release_locally(bounded(), reservation, 0, SeededNonPrivateRandom(0))
    assert not reservation.used


def test_under_local_trust_nothing_is_entrusted_and_the_server_adds_nothing(books: Books) -> None:
    mechanism = make(Trust.LOCAL)
    reservation = books.reserve(mechanism, node=True)
    with pytest.raises(MechanismMisuseError):
        mechanism.entrust(bounded(), reservation, 0)
    with pytest.raises(MechanismMisuseError):
        mechanism.release(bounded(), books.reserve(mechanism), SeededNonPrivateRandom(0))
    assert not reservation.used


def test_under_local_trust_a_client_needs_its_own_nodes_leave(books: Books) -> None:
    """The events of both books are the same under `local`; the federation's booking is still not the node's."""
    mechanism = make(Trust.LOCAL)
    with pytest.raises(MechanismMisuseError, match="another party"):
        mechanism.release_locally(bounded(), books.reserve(mechanism), 0, SeededNonPrivateRandom(0))
    mechanism.release_locally(bounded(), books.reserve(mechanism, node=True), 0, SeededNonPrivateRandom(0))


@pytest.mark.parametrize("value", [0.1, 2.0**-16, 2.0**60, math.nan, math.inf], ids=str)
def test_a_sum_off_the_grid_is_not_released(books: Books, value: float) -> None:
    off = ClippedSum(np.array([0.0, value, 1.0]), 2.0)
    with pytest.raises(MechanismMisuseError):
        make().release(off, books.reserve(make()), SeededNonPrivateRandom(0))
    with pytest.raises(MechanismMisuseError):
        make().entrust(off, books.reserve(make(), node=True), 0)


def test_every_released_number_is_on_the_grid(books: Books) -> None:
    released = make().release(bounded(dimension=200), books.reserve(make()), SystemRandom()).value
    steps = released / grid_step(2.0, 200)
    assert (steps == np.rint(steps)).all()
    assert len(set((steps % 7).tolist())) == 7  # and not on a coarser one


@pytest.mark.parametrize("z", [0.3, 1.5, 100.0, 2.0**14])
@pytest.mark.parametrize("bound", [1e-6, 0.37, 2.0])
def test_the_discrete_noise_is_the_booked_one_and_the_smoothing_on_top(z: float, bound: float) -> None:
    step = grid_step(bound, 64)
    variance = make(z=z, bound=bound).noise_variance(step)
    assert variance == (Fraction(z) * Fraction(bound) / Fraction(step)) ** 2 + 9
    assert float(variance) * step**2 == pytest.approx((z * bound) ** 2, rel=1e-6)


def test_the_slack_that_is_booked_covers_the_largest_dimension() -> None:
    """Of the sampler, of the convolution, and of the reduction to the Gaussian mechanism, over 2^32 coordinates."""
    kappa = math.log1p(eta(SMOOTHING)) - math.log1p(-eta(SMOOTHING))
    assert 0 < LARGEST_DIMENSION * max(kappa, 2.0 * eta(SMOOTHING)) < LOG_RATIO
    for z in (0.01, 1.0, 300.0, 2.0**14):
        for dimension in (1, 64, 10**7):
            sampler = DiscreteGaussian.of_variance(make(z=z, bound=1.99).noise_variance(grid_step(1.99, dimension)))
            assert 0 < LARGEST_DIMENSION * sampler.total_variation < TOTAL_VARIATION


def test_a_composition_is_what_the_rounds_book_one_by_one() -> None:
    order = GaussianMechanism(Trust.CENTRAL, FixedOrderSampling(3), 2.0, 1.5)
    for mechanism in (make(), make(Trust.LOCAL), order):
        for node in (False, True):
            one_by_one: dict[Adversary, Counter[Event]] = {a: Counter() for a in Adversary}
            for number in range(2, 8):
                for adversary, event in (mechanism.node_events if node else mechanism.events)(number).items():
                    one_by_one[adversary][event] += 1
            assert mechanism.composition(2, 7, node=node) == one_by_one
    assert make().composition(5, 4) == {a: Counter() for a in Adversary}


def test_a_round_of_a_fixed_order_is_no_leave_for_another(books: Books) -> None:
    order = GaussianMechanism(Trust.CENTRAL, FixedOrderSampling(3), 2.0, 1.5)
    reservation = books.federation.reserve(2, order.events(1))  # booked as block 0, run as block 1
    with pytest.raises(MechanismMisuseError):
        order.release(bounded(), reservation, SeededNonPrivateRandom(0))


def test_without_noise_the_sum_is_released_as_it_is(books: Books) -> None:
    mechanism = make(z=0.0)
    release = mechanism.release(bounded(), books.reserve(mechanism), SystemRandom())
    np.testing.assert_array_equal(release.value, bounded().value)


def test_a_release_leaves_the_sum_alone(books: Books) -> None:
    total = bounded()
    make().release(total, books.reserve(make()), SeededNonPrivateRandom(0))
    np.testing.assert_array_equal(total.value, bounded().value)


def has_sigma(noise: Vector, sigma: float) -> bool:
    return bool(stats.kstest(noise, stats.norm(scale=sigma).cdf).pvalue > 1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("trust", [Trust.CENTRAL, Trust.LOCAL])
def test_the_noise_of_a_release_has_the_booked_deviation_and_no_other(books: Books, trust: Trust) -> None:
    """False-alarm rate 1e-6 a case (Kolmogorov-Smirnov, 4,000 coordinates); 2/3 and 3/2 must be rejected."""
    mechanism, clipped, rng = make(trust), bounded(dimension=4000), SeededNonPrivateRandom(41)
    if trust is Trust.CENTRAL:
        value = mechanism.release(clipped, books.reserve(mechanism), rng).value
    else:
        value = mechanism.release_locally(clipped, books.reserve(mechanism, node=True), 0, rng).value
    noise = value - clipped.value
    assert has_sigma(noise, 1.5 * 2.0)
    assert not has_sigma(noise, 1.5 * 2.0 * 2 / 3)
    assert not has_sigma(noise, 1.5 * 2.0 * 3 / 2)
    assert not has_sigma(noise, 1.5)  # the multiplier without the bound


def unrelated(a: Vector, b: Vector) -> bool:
    return float(np.mean(a == b)) < 0.01 and bool(stats.pearsonr(a, b).pvalue > 1e-7)  # on a grid, some are equal


@pytest.mark.statistical
def test_two_clients_with_one_seed_add_different_noise_in_every_round(books: Books) -> None:
    """Planted bug: same seed, same noise on two clients. False-alarm rate 1.5e-6 (15 pairs, each 1e-7)."""
    mechanism, clipped = make(Trust.LOCAL), bounded(dimension=500)
    noises = []
    for _ in range(2):
        reservation = books.reserve(mechanism, node=True)
        for client in range(3):
            own_source = SeededNonPrivateRandom(42)
            message = mechanism.release_locally(clipped, reservation, client, own_source)
            noises.append(message.value - clipped.value)
    assert all(unrelated(a, b) for a, b in itertools.combinations(noises, 2))
    assert not unrelated(noises[0], noises[0])  # the test can fail


@pytest.mark.statistical
def test_the_server_adds_different_noise_in_every_round(books: Books) -> None:
    """False-alarm rate 6e-7 (6 pairs, each 1e-7)."""
    clipped = bounded(dimension=500)
    noises = [
        make().release(clipped, books.reserve(make()), SeededNonPrivateRandom(43)).value - clipped.value
        for _ in range(4)
    ]
    assert all(unrelated(a, b) for a, b in itertools.combinations(noises, 2))


UNITS = 2000
MEMBER = np.arange(UNITS) % 2 == 0


def canaries(scale: float) -> Vector:
    """One orthogonal direction a unit; every second unit is in, the others contribute nothing."""
    return np.diag(np.where(MEMBER, scale, 0.0))


def mu_hat(released: Vector) -> tuple[float, float]:
    """How far an adversary tells members from others, in standard deviations of the noise, and its standard error.

    (n, d) = (1,000, 1,000) coordinates: the error of a difference of means, and that of the deviation it is divided by.
    """
    inside, outside = released[MEMBER], released[~MEMBER]
    deviation = math.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    mu = float((inside.mean() - outside.mean()) / deviation)
    return mu, math.sqrt(4 / UNITS + mu**2 / (2 * UNITS))


def audit(books: Books, mechanism: GaussianMechanism, scale: float, seed: int) -> Vector:
    """clip_and_sum over three clients, add up, release."""
    sums = clip_and_sum(canaries(scale), np.arange(UNITS) % 3, 3, mechanism.max_grad_norm)
    total = sums[0] + sums[1] + sums[2]
    return mechanism.release(total, books.reserve(mechanism), SeededNonPrivateRandom(seed)).value


@pytest.mark.statistical
@pytest.mark.parametrize("z", [1.0, 2.5])
def test_orthogonal_canaries_are_told_apart_exactly_as_far_as_booked(books: Books, z: float) -> None:
    """mu = 1/z end to end, also of canaries a thousand times too long. False-alarm rate 1e-6 a case (4.9 errors)."""
    mu, error = mu_hat(audit(books, make(z=z, rate=1.0), 1000.0, seed=44))
    assert abs(mu - 1 / z) < 4.9 * error


@pytest.mark.statistical
def test_the_canaries_catch_half_the_noise_and_double_the_bound(books: Books) -> None:
    """Power of the audit above: what it must find. (False-alarm rates as there.)"""
    honest = make(z=1.0, rate=1.0)
    clipped = clip_and_sum(canaries(1000.0), np.zeros(UNITS, dtype=int), 1, 2.0)[0].value
    stream = SeededNonPrivateRandom(45).stream("noise", round=1)
    half_the_noise = clipped + grid_noise(stream, honest.noise_std / 2, 2.0, UNITS)
    double_the_bound = 2 * clipped + grid_noise(stream, honest.noise_std, 2.0, UNITS)
    no_clipping = canaries(1000.0).sum(axis=0) + grid_noise(stream, honest.noise_std, 2.0, UNITS)
    for planted in (half_the_noise, double_the_bound, no_clipping):
        mu, error = mu_hat(planted)
        assert mu > 1.0 + 4.9 * error
    mu, error = mu_hat(audit(books, honest, 1000.0, seed=45))
    assert mu < 1.0 + 4.9 * error


@pytest.mark.statistical
def test_a_canary_in_a_local_release_is_told_apart_as_far_as_booked(books: Books) -> None:
    """The same audit of one client's own release. False-alarm rate 1e-6."""
    mechanism = make(Trust.LOCAL, z=1.0, rate=1.0)
    (clipped,) = clip_and_sum(canaries(1000.0), np.zeros(UNITS, dtype=int), 1, mechanism.max_grad_norm)
    reservation = books.reserve(mechanism, node=True)
    mu, error = mu_hat(mechanism.release_locally(clipped, reservation, 0, SeededNonPrivateRandom(46)).value)
    assert abs(mu - 1.0) < 4.9 * error
