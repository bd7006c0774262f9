"""Who takes part in a round, the amplification that this justifies, and against whom.

Each sampling turns a Gaussian release into two events: ``secret``, against an adversary who sees neither coins nor
cohort (readers, other clients, a server that learns noised releases only), and ``seen``, what holds whoever watches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privacy.errors import ParameterError
from privacy.events import CappedEvent, Event, FixedOrderEvent, GaussianEvent, TruncatedPoissonEvent
from privacy.rng import Stream

Mask = npt.NDArray[np.bool_]
ORDER = "hash of the unit's name, v1"


@dataclass(frozen=True)
class Units:
    """The privacy units of one node, in a fixed order: what sampling may look at.

    ``client`` [units] is where each sits; ``place`` [units] in [0, 1) is a hash of its name and nothing else, the same
    in every run, whoever else is there.
    """

    client: npt.NDArray[np.integer]
    place: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.client)


class Sampling(Protocol):
    """Draws a cohort of privacy units."""

    @property
    def rate(self) -> float:
        """Expected share of the units in a round: the public divisor is rate x num_units."""

    def select(self, stream: Stream, units: Units, round_number: int) -> Mask:
        """True for the units that take part, shape [units]."""

    def secret(self, release: GaussianEvent, round_number: int) -> Event:
        """The event of an un-amplified ``release`` against who sees neither coins nor cohort."""

    def seen(self, release: GaussianEvent, round_number: int) -> Event:
        """The event against who knows the cohort."""


@dataclass(frozen=True)
class PoissonSampling:
    """Every unit tosses its own coin, inside its client, in secret.

    Guarantees: amplification by ``rate`` against whoever sees neither coins nor cohort: readers, other clients, and a
    server that learns only a noised release. The realised cohort and its size stay inside the client (rule 8). It never
    covers sampling whole clients by a server (rule 3). Mironov, Talwar and Zhang 2019.

    | case | result |
    |---|---|
    | no units | empty mask |
    | nobody drawn | a normal round: pure noise |
    | rate outside (0, 1] | ParameterError |
    """

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def select(self, stream: Stream, units: Units, round_number: int) -> Mask:
        """Toss every unit's coin."""
        del round_number
        return stream.bernoulli(self.rate, len(units))

    def secret(self, release: GaussianEvent, round_number: int) -> Event:
        """Amplified by the rate."""
        del round_number
        return replace(release, sample_rate=float(self.rate))

    def seen(self, release: GaussianEvent, round_number: int) -> Event:
        """Un-amplified."""
        del round_number
        return release


@dataclass(frozen=True)
class TruncatedPoissonSampling:
    """Poisson sampling inside each client, cut to ``largest_cohort`` units of a client, drawn at random.

    Guarantees: as ``PoissonSampling``, at the price of the cut: a unit that is drawn may push another one out, so that
    with the probability of a cut the sum moves by 2 C (after Ganesh 2024; see ``privacy.accounting``). The
    cut is computed for exactly ``population`` coins in every client: a client with fewer units tosses coins for absent
    ones, which may be drawn and contribute nothing; its units after the first ``population`` never take part. A unit
    without a contribution keeps its coin and its place (zero-out).

    | case | result |
    |---|---|
    | no units | empty mask |
    | more heads than largest_cohort | a uniform choice of them |
    | rate outside (0, 1], population or largest_cohort below 1, the second above the first | ParameterError |
    """

    rate: float
    population: int
    largest_cohort: int

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if not 1 <= self.largest_cohort <= self.population:
            raise ParameterError(
                f"largest_cohort={self.largest_cohort} of population={self.population} cuts nothing that can be drawn.",
                "The first must be at least 1 and at most the second.",
                "Set privacy.max_units_per_round and privacy.max_units_per_client.",
            )

    def select(self, stream: Stream, units: Units, round_number: int) -> Mask:
        """Per client: ``population`` coins, and a random choice among too many heads."""
        del round_number
        mask = np.zeros(len(units), dtype=np.bool_)
        for number in np.unique(units.client):
            drawn = np.flatnonzero(stream.bernoulli(self.rate, self.population))
            if len(drawn) > self.largest_cohort:
                drawn = drawn[np.argsort(stream.words(len(drawn)), kind="stable")[: self.largest_cohort]]
            own = np.flatnonzero(units.client == number)
            mask[own[drawn[drawn < len(own)]]] = True
        return mask

    def secret(self, release: GaussianEvent, round_number: int) -> Event:
        """Amplified by the rate, less the cut."""
        del round_number
        slack = release.log_ratio, release.total_variation
        return TruncatedPoissonEvent(
            release.noise_multiplier, float(self.rate), self.population, self.largest_cohort, *slack
        )

    def seen(self, release: GaussianEvent, round_number: int) -> Event:
        """Un-amplified: who knows the cohort knows who was pushed out, and one unit's data move the sum by C."""
        del round_number
        return release


@dataclass(frozen=True)
class FixedOrderSampling:
    """A hash of its name puts a unit into one of ``blocks``; block b takes part in every ``blocks``-th round from b + 1.

    Guarantees: no amplification, against nobody. What it gives instead is a hard cap: in T rounds a unit takes part in
    at most ceil(T / blocks), and only these count for it; no coin has to stay secret. The block depends on the unit's
    name alone, so the books may count the worst block over runs and data sets as well (``ORDER`` names the rule).

    | case | result |
    |---|---|
    | no units | empty mask |
    | blocks 1 | everybody in every round |
    | blocks below 1 | ParameterError |
    """

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ParameterError(
                f"blocks={self.blocks} is no fixed order.",
                "It must be 1 or more.",
                "Set privacy.sample_rate to 1/blocks.",
            )

    @property
    def rate(self) -> float:
        """One block of ``blocks``."""
        return 1.0 / self.blocks

    def select(self, stream: Stream, units: Units, round_number: int) -> Mask:
        """The block of this round; no coin."""
        del stream
        mask: Mask = np.floor(units.place * self.blocks) == (round_number - 1) % self.blocks
        return mask

    def secret(self, release: GaussianEvent, round_number: int) -> Event:
        """One release of one block; secrecy changes nothing."""
        return self.seen(release, round_number)

    def seen(self, release: GaussianEvent, round_number: int) -> Event:
        """One un-amplified release of one block."""
        slack = release.log_ratio, release.total_variation
        block = (round_number - 1) % self.blocks
        return FixedOrderEvent(release.noise_multiplier, self.blocks, block, ORDER, *slack)


@dataclass(frozen=True)
class CappedSampling:
    """Whole clients are asked, in the open; every one of them refuses its (``cap`` + 1)-th round within ``scope``.

    For clients that hold one unit each. Guarantees: no amplification, against nobody: server and other clients know the
    cohort, and the variance of the noise shows it to readers. At most ``cap`` releases count for a unit, whichever they
    are (adaptively placed participations between rounds without one are dominated by ``cap`` in a row); the client itself
    keeps count. ``rate`` is the public share of the units that are asked in a round.

    | case | result |
    |---|---|
    | no units | empty mask |
    | rate outside (0, 1], cap below 1 | ParameterError |
    """

    rate: float
    cap: int
    scope: str

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if self.cap < 1:
            raise ParameterError(
                f"cap={self.cap} lets nobody take part.", "It must be 1 or more.", "Set privacy.max_participations."
            )

    def select(self, stream: Stream, units: Units, round_number: int) -> Mask:
        """Every unit of the clients that were asked; no coin."""
        del stream, round_number
        return np.ones(len(units), dtype=np.bool_)

    def secret(self, release: GaussianEvent, round_number: int) -> Event:
        """As ``seen``: the cohort is no secret."""
        return self.seen(release, round_number)

    def seen(self, release: GaussianEvent, round_number: int) -> Event:
        """One un-amplified release, of which ``cap`` count."""
        del round_number
        slack = release.log_ratio, release.total_variation
        return CappedEvent(release.noise_multiplier, self.cap, self.scope, *slack)


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and 0.0 < rate <= 1.0):
        raise ParameterError(
            f"sample_rate={rate} is no sampling probability.",
            "It must lie in (0, 1]; 1 means that everybody takes part in every round.",
            "Set privacy.sample_rate, for example to 0.1.",
        )
