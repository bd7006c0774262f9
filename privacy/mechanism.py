"""Mechanism = sampling + clipping + noise + the one event that describes them: the only way to a release.

A release needs a ``Reservation``, which only the ledger makes, after the event is on disk. So nothing can be released
that was not booked, nor booked as anything else than what the mechanism does.

Why integers may be booked as the Gaussian mechanism. Let s^2 = (z C / step)^2 + r^2 with r = 3 steps be the variance of
the discrete noise. Draw g ~ N(m, s^2 - r^2), a continuous Gaussian of deviation z C, then an integer k with weight
exp(-(k - g)^2 / 2 r^2): k has the law of m + N_Z(0, s^2) up to a factor (1 + eta(r)) / (1 - eta(r)) in probability
(``privacy.noise.eta``), for every integer m. The second step looks at no data. So a release of integers is
post-processing of the continuous release with noise multiplier z exactly, up to ``LOG_RATIO`` in density over all
coordinates, in any dimension and under any sampling (mixtures keep ratios). One-dimensional accountants of the discrete
Gaussian would not do: they are no bound for vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privacy.clipping import ClippedSum
from privacy.errors import MechanismMisuseError, ParameterError
from privacy.events import Event, GaussianEvent, NonPrivateEvent, TrustedEvent
from privacy.ledger import Reservation
from privacy.noise import DiscreteGaussian, Words
from privacy.rng import RandomSource
from privacy.sampling import Sampling
from privacy.sealed import Entrusted, LocallyPrivate
from privacy.units import Adversary, Trust

SMOOTHING = 3  # r, in steps of the grid
LARGEST_DIMENSION = 2**32
LOG_RATIO = 2.0**-200  # > 2^32 coordinates x ln((1 + eta(3)) / (1 - eta(3))) = 2^32 x 2.6e-77
TOTAL_VARIATION = 2.0**-190  # > 2^32 coordinates x 2^-230 of the sampler
LARGEST_MULTIPLIER = 2.0**14  # so that the noise fits the sampler, and the sum 53 bits


@dataclass(frozen=True)
class Release:
    """A noised sum: may be read by anyone, any number of times."""

    round: int
    value: npt.NDArray[np.float64]
    noise_std: float


@dataclass(frozen=True)
class GaussianMechanism:
    """Sampled units, clipped to ``max_grad_norm``, summed on a grid, with discrete Gaussian noise in every coordinate.

    Guarantees: one release is the (sampled) Gaussian mechanism with noise multiplier ``noise_multiplier`` for the
    zero-out relation, up to the slack that the event books (above); over rounds the events compose. Under trust
    ``central`` the server adds the noise once to the sum over clients; under ``local`` every client adds all of it to
    its own sum. Clipping a client's whole update once, with one row per client, is DP-FedAvg for unit ``client``
    (McMahan et al. 2018).

    | case | result |
    |---|---|
    | noise_multiplier 0 | released as is; the event is ``non_private`` |
    | reservation of another event or of another party's book, used before or closed | MechanismMisuseError |
    | a sum of another bound than max_grad_norm, off the grid, or beyond 2^52 steps | MechanismMisuseError |
    | NaN, inf or negative parameters, noise_multiplier above 2^14 | ParameterError |
    """

    trust: Trust
    sampling: Sampling
    max_grad_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        if self.trust is Trust.DISTRIBUTED:
            raise ParameterError(
                "This mechanism does not do trust `distributed`.",
                "There the noise is added inside secure aggregation, in shares.",
                "Use privacy.distributed.DistributedMechanism.",
            )
        if not (0 <= self.noise_multiplier <= LARGEST_MULTIPLIER and 0 < self.max_grad_norm < float("inf")):
            raise ParameterError(
                f"noise_multiplier={self.noise_multiplier}, max_grad_norm={self.max_grad_norm} make no mechanism.",
                "The first must be from 0 to 2^14, the second positive and finite.",
                "Check the `privacy` block of the recipe.",
            )

    @property
    def noise_std(self) -> float:
        """Deviation of the Gaussian noise that the event books, per coordinate; that of the grid is larger by 1e-9 of it."""
        return self.noise_multiplier * self.max_grad_norm

    @property
    def _release(self) -> GaussianEvent | None:
        """The un-amplified event of one release; None without noise."""
        if self.noise_multiplier == 0:
            return None
        return GaussianEvent(float(self.noise_multiplier), 1.0, "discrete", LOG_RATIO, TOTAL_VARIATION)

    def events(self, round_number: int = 1) -> dict[Adversary, Event]:
        """One round in the federation's ledger, per adversary (guarantees.md, table of adversaries).

        The coins are tossed inside the clients, so nobody outside sees them; under ``local`` that includes the server.
        Only a fixed order depends on the number of the round.
        """
        release = self._release
        sampled = self.sampling.secret(release, round_number) if release else NonPrivateEvent("no noise")
        server = TrustedEvent() if self.trust is Trust.CENTRAL else sampled
        return {Adversary.READER: sampled, Adversary.OTHER_CLIENTS: sampled, Adversary.SERVER: server}

    def node_events(self, round_number: int = 1) -> dict[Adversary, Event]:
        """One round in a node's own ledger: for each of its clients, the worst case that the client can vouch for.

        Under ``central`` it cannot vouch for the secrecy of anything that the server does, so its participation is
        listed un-amplified; under ``local`` its own release is the claim.
        """
        if self.trust is Trust.LOCAL:
            return self.events(round_number)
        release = self._release
        plain = self.sampling.seen(release, round_number) if release else NonPrivateEvent("no noise")
        return {Adversary.READER: plain, Adversary.OTHER_CLIENTS: plain, Adversary.SERVER: TrustedEvent()}

    def composition(self, first: int, last: int, *, node: bool = False) -> dict[Adversary, Counter[Event]]:
        """The events of rounds ``first`` to ``last``, both included: what ``plan`` composes and the run will write."""
        return compose_rounds(self.node_events if node else self.events, first, last)

    def entrust(self, clipped: ClippedSum, reservation: Reservation, client: int) -> Entrusted:
        """Seal a clipped sum for the trusted server. Only under trust ``central``."""
        if self.trust is not Trust.CENTRAL:
            raise _misuse("A clipped sum may be entrusted to a server only under trust `central`.")
        self._check(clipped, reservation, self.node_events(reservation.round), f"client {client}", node=True)
        return Entrusted(client, reservation.round, clipped.value, clipped.l2_bound)

    def release_locally(
        self, clipped: ClippedSum, reservation: Reservation, client: int, rng: RandomSource
    ) -> LocallyPrivate:
        """Noise a client's own sum inside the client. Only under trust ``local``."""
        if self.trust is not Trust.LOCAL:
            raise _misuse("Clients add all the noise only under trust `local`.")
        self._check(clipped, reservation, self.node_events(reservation.round), f"client {client}", node=True)
        value = self.noised(clipped, rng.stream("noise", round=reservation.round, client=client))
        return LocallyPrivate(client, reservation.round, value, clipped.l2_bound)

    def release(self, total: ClippedSum, reservation: Reservation, rng: RandomSource) -> Release:
        """Noise the sum over all clients at the trusted server. Only under trust ``central``."""
        if self.trust is not Trust.CENTRAL:
            raise _misuse("The server adds noise only under trust `central`.")
        self._check(total, reservation, self.events(reservation.round), "server", node=False)
        value = self.noised(total, rng.stream("noise", round=reservation.round))
        return Release(reservation.round, value, self.noise_std)

    def collect(self, messages: Sequence[LocallyPrivate], reservation: Reservation) -> Release:
        """Sum what clients noised themselves. Only under trust ``local``; each message is private by itself.

        Its noise is that of as many clients as answered; the booked event is each client's own, whoever else answered.
        """
        if self.trust is not Trust.LOCAL:
            raise _misuse("Only under trust `local` do clients release by themselves.")
        if not messages or any((m.round, m.l2_bound) != (reservation.round, self.max_grad_norm) for m in messages):
            raise _misuse("The messages are none, or of another round or bound.")
        check_booking(reservation, self.events(reservation.round), node=False)
        reservation.use("server")
        noise_std = self.noise_std * len(messages) ** 0.5
        return Release(reservation.round, np.sum([m.value for m in messages], axis=0), noise_std)

    def noise_variance(self, step: float) -> Fraction:
        """Variance of the discrete noise in squared steps of the grid."""
        if self.noise_multiplier == 0:
            return Fraction(0)
        return (Fraction(self.noise_multiplier) * Fraction(self.max_grad_norm) / Fraction(step)) ** 2 + SMOOTHING**2

    def noised(self, clipped: ClippedSum, bits: Words) -> npt.NDArray[np.float64]:
        """Integer sum + integer noise, back in real units; every operation is exact. For mechanisms: it books nothing."""
        if self.noise_multiplier == 0:
            return clipped.value.copy()
        sampler = DiscreteGaussian.of_variance(self.noise_variance(clipped.step))
        steps = np.rint(clipped.value / clipped.step) + sampler.sample(len(clipped.value), bits)
        return np.asarray(steps * clipped.step)

    def _check(
        self,
        clipped: ClippedSum,
        reservation: Reservation,
        events: dict[Adversary, Event],
        party: str,
        *,
        node: bool,
    ) -> None:
        check_booking(reservation, events, node=node)
        if clipped.l2_bound != self.max_grad_norm:
            raise _misuse(f"The sum is bounded by {clipped.l2_bound:g}, the noise is sized for {self.max_grad_norm:g}.")
        steps = clipped.value / clipped.step
        if not (np.abs(steps) <= 2.0**52).all() or (np.rint(steps) != steps).any() or steps.size > LARGEST_DIMENSION:
            raise _misuse("The sum is off the grid, or too large for exact arithmetic.")
        reservation.use(party)


class Mechanism(Protocol):
    """What plan, ledgers and rounds need of any mechanism, whoever adds its noise."""

    @property
    def trust(self) -> Trust:
        """Where the noise is added."""

    @property
    def sampling(self) -> Sampling:
        """Who takes part in a round."""

    @property
    def max_grad_norm(self) -> float:
        """The bound of one unit."""

    @property
    def noise_multiplier(self) -> float:
        """Of the booked event."""

    @property
    def noise_std(self) -> float:
        """Deviation of the booked noise, per coordinate."""

    def events(self, round_number: int = 1) -> dict[Adversary, Event]:
        """One round in the federation's ledger, per adversary."""

    def node_events(self, round_number: int = 1) -> dict[Adversary, Event]:
        """One round in a node's own ledger, per adversary."""

    def composition(self, first: int, last: int, *, node: bool = False) -> dict[Adversary, Counter[Event]]:
        """The events of rounds ``first`` to ``last``, both included."""


def compose_rounds(
    book: Callable[[int], dict[Adversary, Event]], first: int, last: int
) -> dict[Adversary, Counter[Event]]:
    """What ``book`` writes for rounds ``first`` to ``last``, per adversary."""
    rounds = [book(number) for number in range(first, last + 1)]
    return {adversary: Counter(events[adversary] for events in rounds) for adversary in Adversary}


def check_booking(reservation: Reservation, events: dict[Adversary, Event], *, node: bool) -> None:
    """The reservation is of the right book and books exactly these events.

    Raises:
        MechanismMisuseError: it does not.
    """
    if reservation.scope.startswith("node:") is not node:
        raise _misuse("The reservation is of another party's book than the one that releases.")
    if dict(reservation.events) != events:
        raise _misuse("The reservation books another event than this mechanism is.")


def _misuse(what: str) -> MechanismMisuseError:
    return MechanismMisuseError(
        what, "The books and the mechanism must agree.", "Build mechanism and ledger from one plan."
    )
