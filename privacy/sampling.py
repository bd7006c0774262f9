"""Who takes part in a round, and the amplification that this justifies against each adversary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.errors import ParameterError
from privacy.rng import Stream


@dataclass(frozen=True)
class PoissonSampling:
    """Every unit tosses its own coin, inside its client, in secret.

    Guarantees: amplification by ``rate`` against whoever sees neither coins nor cohort: readers, other clients, and a
    server that learns only a noised release. The realised cohort and its size stay inside the client (rule 8). It never
    covers sampling whole clients by a server (rule 3).

    | case | result |
    |---|---|
    | no units | empty mask |
    | nobody drawn | a normal round: pure noise |
    | rate outside (0, 1] | ParameterError |
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ParameterError(
                f"sample_rate={self.rate} is no sampling probability.",
                "It must lie in (0, 1]; 1 means that everybody takes part in every round.",
                "Set privacy.sample_rate, for example to 0.1.",
            )

    def select(self, stream: Stream, n: int) -> npt.NDArray[np.bool_]:
        """Toss the coins of ``n`` units, shape [n]."""
        return stream.bernoulli(self.rate, n)
