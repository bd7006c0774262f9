"""Local DP-SGD: several noised steps inside one client, every one of them booked (guarantees.md rule 17).

Abadi et al. 2016, algorithm 1, run by the client alone: in each step its units toss fresh coins, their gradients at the
current parameters are clipped, summed on the grid and noised; what leaves is the difference after the last step, which
is post-processing of the noised sums. The event of a round is ``steps`` repetitions of one step's event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.clipping import clip_and_sum, grid_step
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
class LocalDpSgd:
    """``steps`` steps of DP-SGD with the noise, clipping and coins of ``mechanism``.

    Args:
        mechanism: trust ``local``, Poisson sampling; one step's release.
        learning_rate: parameters move by -learning_rate x noised sum / divisor.
        divisor: a public constant, for example sample_rate x the declared units of a client (rule 4).

    Guarantees: against everybody, the server included, a round is ``steps`` adaptive repetitions of the mechanism's
    event. Parameters between the steps never leave.

    | case | result |
    |---|---|
    | no unit, or nobody drawn in a step | pure noise in that step |
    | noise_multiplier 0 | the event is ``non_private`` |
    | steps below 1, another trust, a sampling without a Gaussian event, a divisor that is not positive | ParameterError |
    | reservation of another event or another party's book, or used before | MechanismMisuseError |
    """

    mechanism: GaussianMechanism
    steps: int
    learning_rate: float
    divisor: float

    def __post_init__(self) -> None:
        one = self.mechanism.events()[Adversary.READER]
        finite = 0 < self.divisor < float("inf") and abs(self.learning_rate) < float("inf")
        if (
            self.steps < 1
            or self.mechanism.trust is not Trust.LOCAL
            or not isinstance(one, (GaussianEvent, NonPrivateEvent))
            or not finite
        ):
            raise ParameterError(
                "This is no local DP-SGD.",
                "It takes at least one step, trust `local`, Poisson sampling, a finite learning rate and a positive divisor.",
                "Check the `privacy` block of the recipe.",
            )

    def events(self, round_number: int = 1) -> dict[Adversary, Event]:
        """One round, in the federation's ledger and in the node's."""
        one = self.mechanism.events(round_number)[Adversary.READER]
        event = RepeatedEvent(one, self.steps) if isinstance(one, GaussianEvent) else one
        return dict.fromkeys(Adversary, event)

    def release(
        self,
        start: Vector,
        gradients: Gradients,
        units: Units,
        reservation: Reservation,
        *,
        client: int,
        rng: RandomSource,
    ) -> LocallyPrivate:
        """Train from ``start`` [d] and seal the difference, cut to the grid of the message.

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
        parameters, labels = start.astype(np.float64), {"round": reservation.round, "client": client}
        for step in range(self.steps):
            coins = rng.stream("coins", step=step, **labels)
            mask = self.mechanism.sampling.select(coins, units, reservation.round)
            rows = gradients(parameters, mask)
            one_client = np.zeros(len(rows), dtype=np.int64)
            (total,) = clip_and_sum(rows, one_client, 1, self.mechanism.max_grad_norm)
            noised = self.mechanism.noised(total, rng.stream("noise", step=step, **labels))
            parameters = parameters - self.learning_rate * noised / self.divisor
        bound = self.mechanism.max_grad_norm
        grid = grid_step(bound, len(start))
        return LocallyPrivate(client, reservation.round, np.rint((parameters - start) / grid) * grid, bound)
