"""Local DP-SGD: several noised steps inside one client, every one of them booked (guarantees.md rule 17).

Abadi et al. 2016, algorithm 1, run by the client alone: in each step its units toss fresh coins, their gradients at the
current parameters are clipped, summed on the grid and noised. What leaves is the sum of the noised sums, of which the
client's parameters after the last step are a function, so that no more is released than what every step's event covers.
The event of a round is ``steps`` repetitions of one step's event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.clipping import clip_and_sum
from privacy.errors import MechanismMisuseError, ParameterError
from privacy.events import Event, GaussianEvent, NonPrivateEvent, RepeatedEvent
from privacy.ledger import Reservation
from privacy.mechanism import GaussianMechanism
from privacy.rng import RandomSource
from privacy.sampling import Mask, Units
from privacy.sealed import LocallyPrivate
from privacy.units import Adversary, Trust

Vector = npt.NDArray[np.float64]
Gradients = Callable[[Vector, Mask], npt.NDArray[np.floating]]


@dataclass(frozen=True)
class LocalDpSgd(GaussianMechanism):
    """``steps`` steps of DP-SGD with the noise, clipping and coins of a mechanism of trust ``local``, Poisson-sampled.

    Args:
        steps: of one client in one round.
        learning_rate: the client's parameters move by -learning_rate x noised sum / divisor.
        divisor: a public constant, for example sample_rate x the declared units of a client (rule 4).

    Guarantees: against everybody, the server included, a round is ``steps`` adaptive repetitions of the mechanism's
    event. With one step it is trust ``local`` as it is without local steps.

    | case | result |
    |---|---|
    | no unit, or nobody drawn in a step | pure noise in that step |
    | noise_multiplier 0 | the event is ``non_private`` |
    | steps below 1, another trust, a sampling without a Gaussian event, a divisor that is not positive | ParameterError |
    | reservation of another event or another party's book, or used before | MechanismMisuseError |
    """

    steps: int
    learning_rate: float
    divisor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        one = super().events()[Adversary.READER]
        finite = 0 < self.divisor < float("inf") and abs(self.learning_rate) < float("inf")
        if (
            self.steps < 1
            or self.trust is not Trust.LOCAL
            or not isinstance(one, (GaussianEvent, NonPrivateEvent))
            or not finite
        ):
            raise ParameterError(
                "This is no local DP-SGD.",
                "It takes at least one step, trust `local`, Poisson sampling, a finite learning rate and a positive divisor.",
                "Check the blocks `privacy` and `reward.local` of the recipe.",
            )

    @property
    def noise_std(self) -> float:
        """Deviation of the noise of one client's message, per coordinate: that of ``steps`` independent draws."""
        return super().noise_std * math.sqrt(self.steps)

    def events(self, round_number: int = 1) -> dict[Adversary, Event]:
        """One round, in the federation's ledger and in the node's."""
        one = super().events(round_number)[Adversary.READER]
        event = RepeatedEvent(one, self.steps) if isinstance(one, GaussianEvent) else one
        return dict.fromkeys(Adversary, event)

    def train(
        self,
        start: Vector,
        gradients: Gradients,
        units: Units,
        reservation: Reservation,
        *,
        client: int,
        rng: RandomSource,
    ) -> LocallyPrivate:
        """Train from ``start`` [d] and seal the sum of the noised sums: (start - trained) x divisor / learning_rate.

        Args:
            gradients: (parameters, mask of the drawn units) -> one row per drawn unit, shape [drawn, d].
            units: the privacy units of this one client.
        """
        if not reservation.scope.startswith("node:") or dict(reservation.events) != self.events(reservation.round):
            raise MechanismMisuseError(
                "The reservation books something else than this client's local DP-SGD.",
                "Another event, or another party's book.",
                "Reserve `LocalDpSgd.events()` in the node's ledger.",
            )
        reservation.use(f"client {client}")
        parameters, sent = start.astype(np.float64), np.zeros(len(start))
        labels = {"round": reservation.round, "client": client}
        for step in range(self.steps):
            coins = rng.stream("coins", step=step, **labels)
            mask = self.sampling.select(coins, units, reservation.round)
            rows = gradients(parameters, mask)
            one_client = np.zeros(len(rows), dtype=np.int64)
            (total,) = clip_and_sum(rows, one_client, 1, self.max_grad_norm)
            noised = self.noised(total, rng.stream("noise", step=step, **labels))
            sent += noised  # integers on the grid: exact
            parameters = parameters - self.learning_rate * noised / self.divisor
        return LocallyPrivate(client, reservation.round, sent, self.max_grad_norm)
