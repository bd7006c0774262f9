"""The mechanism of trust ``distributed``: coins and clipping inside clients, the noise inside secure aggregation.

Every client adds a noise share before its vector is masked; the server, and whoever else, sees the noised sum alone. The
booked event is that of the worst sum that can be unmasked, whatever a lying server and c colluding clients do
(``privacy.secagg.sizing``): the same against every adversary. A single other client, which knows its own share, is one
of the c. Coins are tossed inside clients, so amplification holds against the server too; where whole clients are chosen
(``CappedSampling``) there is none, against nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.errors import MechanismMisuseError, ParameterError
from privacy.events import Event, NonPrivateEvent
from privacy.ledger import Reservation
from privacy.mechanism import Release, check_booking, compose_rounds
from privacy.rng import RandomSource
from privacy.sampling import Sampling
from privacy.secagg.plan import SecAggPlan
from privacy.secagg.robust import BucketSums, Unmasked, robust_sum
from privacy.secagg.shares import NoisedShare, make_share
from privacy.units import Adversary, Trust


@dataclass(frozen=True)
class DistributedMechanism:
    """Sampled units, clipped, summed inside each client, rounded with a noise share; summed under masks.

    Guarantees: one release is the (sampled) Gaussian mechanism with multiplier ``noise_multiplier`` for the zero-out
    relation, up to the slack that the event books, against readers, other clients, and an active server with up to
    ``secagg.cohort.colluders`` clients. Rows of another bound C' than the codec's C (adaptive clipping) are scaled by
    C / C' first and the released sum is scaled back: C' is public, and the clip at C holds whatever it is.

    | case | result |
    |---|---|
    | noise 0 | released as is; the event is ``non_private`` |
    | no colluder planned for | ParameterError: another client knows its own share |
    | reservation of another event or book, used before or closed | MechanismMisuseError |
    | an empty sample | a share like any other |
    """

    sampling: Sampling
    secagg: SecAggPlan

    def __post_init__(self) -> None:
        if self.secagg.cohort.colluders < 1:
            raise ParameterError(
                "Nobody is counted as a colluder.",
                "Any other client knows its own noise share, so one share less hides a person from it.",
                "Set privacy.colluders to 1 or more.",
            )

    @property
    def trust(self) -> Trust:
        """``distributed``."""
        return Trust.DISTRIBUTED

    @property
    def max_grad_norm(self) -> float:
        """The bound of one unit."""
        return self.secagg.codec.max_grad_norm

    @property
    def noise_multiplier(self) -> float:
        """Of the booked event: the worst sum that can be unmasked."""
        return self.secagg.noise.effective_multiplier

    @property
    def noise_std(self) -> float:
        """Deviation of the noise that the event books, per coordinate; more survivors add more."""
        return self.noise_multiplier * self.max_grad_norm

    def events(self, round_number: int = 1) -> dict[Adversary, Event]:
        """One round, per adversary: the planned worst case against each of them (guarantees.md rule 9)."""
        release = self.secagg.event
        event = self.sampling.secret(release, round_number) if release else NonPrivateEvent("no noise")
        return dict.fromkeys(Adversary, event)

    def node_events(self, round_number: int = 1) -> dict[Adversary, Event]:
        """One round in a node's own ledger: the same, because the client itself checks what the event rests on."""
        return self.events(round_number)

    def composition(self, first: int, last: int, *, node: bool = False) -> dict[Adversary, Counter[Event]]:
        """The events of rounds ``first`` to ``last``, both included."""
        del node
        return compose_rounds(self.events, first, last)

    def share(
        self,
        blocks: Iterable[npt.NDArray[np.floating]],
        bound: float,
        reservation: Reservation,
        client: int,
        rng: RandomSource,
        *,
        number: int,
    ) -> NoisedShare:
        """One client's noised share of a round; only under the node's reservation, once.

        Args:
            blocks: one row per sampled unit of the client, in blocks of shape [units, d] that are read one by one.
            bound: C' that the rows are meant to be clipped to.
            reservation: of the node's ledger.
            client: its number.
            rng: of dither and noise.
            number: the number of the exchange, which keys and rotation are bound to.
        """
        check_booking(reservation, self.node_events(reservation.round), node=True)
        reservation.use(f"client {client}")
        scale = self.max_grad_norm / bound
        scaled = (rows if bound == self.max_grad_norm else rows.astype(np.float64) * scale for rows in blocks)
        return make_share(self.secagg, self.secagg.codec.sum_blocks(scaled), number, client, rng)

    def release(self, total: Unmasked, bound: float, reservation: Reservation) -> Release:
        """The unmasked sum as the release of its round, under the federation's reservation; of buckets, the trimmed mean.

        The event is that of one sum: a unit is in one bucket (``privacy.secagg.buckets``).

        Raises:
            MechanismMisuseError: fewer survivors than the plan allows, or another booking.
        """
        check_booking(reservation, self.events(reservation.round), node=False)
        sums = [bucket.total for bucket in total.buckets] if isinstance(total, BucketSums) else [total]
        smallest = min(len(one.survivors) for one in sums)
        if smallest < self.secagg.cohort.least:
            raise MechanismMisuseError(
                f"A sum of {smallest} clients.",
                f"The noise is sized for {self.secagg.cohort.least} or more.",
                "Abort the round before anything is unmasked.",
            )
        reservation.use("server")
        scale = bound / self.max_grad_norm
        if isinstance(total, BucketSums):
            value, deviation = robust_sum(self.secagg, total)
            return Release(reservation.round, value * scale, deviation * scale)
        return Release(reservation.round, total.value * scale, total.noise_std * scale)
