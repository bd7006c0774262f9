"""Mechanism = sampling + clipping + noise + the one event that describes them: the only way to a release.

A release needs a ``Reservation``, which only the ledger makes, after the event is on disk. So nothing can be released
that was not booked, nor booked as anything else than what the mechanism does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from privacy.clipping import ClippedSum
from privacy.errors import MechanismMisuseError, ParameterError
from privacy.events import Event, GaussianEvent, NonPrivateEvent, TrustedEvent
from privacy.ledger import Reservation
from privacy.noise import gaussian_noise
from privacy.rng import RandomSource
from privacy.sampling import PoissonSampling
from privacy.sealed import Entrusted, LocallyPrivate
from privacy.units import Adversary, Trust


@dataclass(frozen=True)
class Release:
    """A noised sum: may be read by anyone, any number of times."""

    round: int
    value: npt.NDArray[np.float64]
    noise_std: float


@dataclass(frozen=True)
class GaussianMechanism:
    """Poisson-sampled units, clipped to ``max_grad_norm``, summed, with N(0, (noise_multiplier max_grad_norm)^2).

    Guarantees: one release is the Poisson-subsampled Gaussian mechanism (Mironov, Talwar and Zhang 2019) for the
    zero-out relation; over rounds the events compose. Under trust ``central`` the server adds the noise once to the sum
    over clients; under ``local`` every client adds all of it to its own sum.

    | case | result |
    |---|---|
    | noise_multiplier 0 | released as is; the event is ``non_private`` |
    | reservation of another event, used before or closed; a sum of another bound than max_grad_norm | MechanismMisuseError |
    | NaN, inf or negative parameters | ParameterError |
    """

    trust: Trust
    sampling: PoissonSampling
    max_grad_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        if self.trust is Trust.DISTRIBUTED:
            raise ParameterError(
                "privacy.trust: distributed is not available yet.",
                "Its noise is added inside secure aggregation, which this version does not have.",
                "Use `central` (you trust the server with clipped sums) or `local` (you trust nobody, at more noise).",
            )
        if not (0 <= self.noise_multiplier < float("inf") and 0 < self.max_grad_norm < float("inf")):
            raise ParameterError(
                f"noise_multiplier={self.noise_multiplier}, max_grad_norm={self.max_grad_norm} make no mechanism.",
                "The first must be zero or more, the second positive, both finite.",
                "Check the `privacy` block of the recipe.",
            )

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in every coordinate of the sum."""
        return self.noise_multiplier * self.max_grad_norm

    @property
    def _amplified(self) -> Event:
        if self.noise_multiplier == 0:
            return NonPrivateEvent("no noise")
        return GaussianEvent(float(self.noise_multiplier), float(self.sampling.rate))

    def events(self) -> dict[Adversary, Event]:
        """One round in the federation's ledger, per adversary (guarantees.md, table of adversaries).

        The coins are tossed inside the clients, so nobody outside sees them; under ``local`` that includes the server.
        """
        amplified = self._amplified
        server = TrustedEvent() if self.trust is Trust.CENTRAL else amplified
        return {Adversary.READER: amplified, Adversary.OTHER_CLIENTS: amplified, Adversary.SERVER: server}

    def node_events(self) -> dict[Adversary, Event]:
        """One round in a node's own ledger: for each of its clients, the worst case that the client can vouch for.

        Under ``central`` it cannot vouch for the secrecy of anything that the server does, so its participation is
        listed un-amplified; under ``local`` its own release is the claim.
        """
        if self.trust is Trust.LOCAL:
            return self.events()
        amplified = self._amplified
        plain = replace(amplified, sample_rate=1.0) if isinstance(amplified, GaussianEvent) else amplified
        return {Adversary.READER: plain, Adversary.OTHER_CLIENTS: plain, Adversary.SERVER: TrustedEvent()}

    def entrust(self, clipped: ClippedSum, reservation: Reservation, client: int) -> Entrusted:
        """Seal a clipped sum for the trusted server. Only under trust ``central``."""
        if self.trust is not Trust.CENTRAL:
            raise _misuse("A clipped sum may be entrusted to a server only under trust `central`.")
        self._check(clipped, reservation, self.node_events(), f"client {client}")
        return Entrusted(client, reservation.round, clipped.value, clipped.l2_bound)

    def release_locally(
        self, clipped: ClippedSum, reservation: Reservation, client: int, rng: RandomSource
    ) -> LocallyPrivate:
        """Noise a client's own sum inside the client. Only under trust ``local``."""
        if self.trust is not Trust.LOCAL:
            raise _misuse("Clients add all the noise only under trust `local`.")
        self._check(clipped, reservation, self.node_events(), f"client {client}")
        noise = gaussian_noise(
            rng.stream("noise", round=reservation.round, client=client), self.noise_std, len(clipped.value)
        )
        return LocallyPrivate(client, reservation.round, clipped.value + noise, clipped.l2_bound)

    def release(self, total: ClippedSum, reservation: Reservation, rng: RandomSource) -> Release:
        """Noise the sum over all clients at the trusted server. Only under trust ``central``."""
        if self.trust is not Trust.CENTRAL:
            raise _misuse("The server adds noise only under trust `central`.")
        self._check(total, reservation, self.events(), "server")
        noise = gaussian_noise(rng.stream("noise", round=reservation.round), self.noise_std, len(total.value))
        return Release(reservation.round, total.value + noise, self.noise_std)

    def _check(self, clipped: ClippedSum, reservation: Reservation, events: dict[Adversary, Event], party: str) -> None:
        if dict(reservation.events) != events:
            raise _misuse("The reservation books another event than this mechanism is.")
        if clipped.l2_bound != self.max_grad_norm:
            raise _misuse(f"The sum is bounded by {clipped.l2_bound:g}, the noise is sized for {self.max_grad_norm:g}.")
        reservation.use(party)


def _misuse(what: str) -> MechanismMisuseError:
    return MechanismMisuseError(
        what, "The books and the mechanism must agree.", "Build mechanism and ledger from one plan."
    )
